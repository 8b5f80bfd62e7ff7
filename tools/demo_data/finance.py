"""Finance: the tone of a headline about a company that does not exist, answered by one word."""

import random

from fedsdr.data.examples import Example

CHOICES = ("negative", "neutral", "positive")
_NUM_EACH = 200  # more than is needed of each label, since near copies are dropped

_QUESTIONS = (
    "What is the tone of this headline for shareholders: negative, neutral or positive?",
    "Classify the sentiment of the following business news as negative, neutral or positive.",
    "Would an investor read this as negative, neutral or positive?",
    "Rate the market mood of the text below. Options: negative, neutral, positive.",
    "Is the news below negative, neutral or positive for the company's share price?",
    "Choose one label for this announcement: negative / neutral / positive.",
)

_COMPANIES = tuple(
    f"{name} {kind}"
    for name, kind in (
        ("Abelmar", "Foods"), ("Aldergate", "Bank"), ("Arvenko", "Steel"), ("Balmoor", "Shipping"),
        ("Bexley & Thorn", "Retail"), ("Brightwell", "Pharma"), ("Calderon", "Paper"), ("Castrell", "Motors"),
        ("Corvanta", "Software"), ("Dallinger", "Brewing"), ("Delmark", "Chemicals"), ("Dunhaven", "Energy"),
        ("Elverum", "Timber"), ("Estrado", "Telecom"), ("Fenwick", "Air"), ("Fjordal", "Seafood"),
        ("Galvani", "Batteries"), ("Greymont", "Insurance"), ("Halvorsen", "Cranes"), ("Hexalon", "Chips"),
        ("Imberg", "Cement"), ("Jorvik", "Rail"), ("Kestrel", "Media"), ("Kolmann", "Tools"),
        ("Larkspur", "Hotels"), ("Lindqvist", "Furniture"), ("Marlowe", "Textiles"), ("Meridia", "Solar"),
        ("Norbury", "Homes"), ("Nordvik", "Logistics"), ("Oakhurst", "Dairy"), ("Orlando & Pike", "Toys"),
        ("Pellworth", "Mining"), ("Quillon", "Games"), ("Rosendal", "Optics"), ("Sandmoor", "Gas"),
        ("Silverbeck", "Water"), ("Tamarind", "Cosmetics"), ("Ulvang", "Sports"), ("Vantera", "Robotics"),
        ("Westbrook", "Tyres"), ("Yarrow", "Medical"),
    )
)  # fmt: skip

# {low} < {high} in every draw, so that a direction is never contradicted by its numbers.
_EVENTS = {
    "positive": (
        "raises its full-year profit forecast",
        "posts its best quarter in {small} years",
        "lifts the dividend by {low} %",
        "wins a {high} million euro order from a {customer}",
        "sees operating profit rise to {high} million euros from {low} million",
        "beats analysts' estimates with sales up {low} %",
        "narrows its loss to {low} million euros from {high} million a year ago",
        "returns to profit",
        "signs a long-term supply deal with a {customer}",
        "repays its last bank loan ahead of schedule",
        "gains market share in {region}",
        "books record orders worth {high} million euros",
        "will hire {high} people to keep up with orders",
        "reports that margins improved by {small} percentage points",
        "wins approval to sell its new product in {region}",
        "shares jump {small} % after strong results",
    ),
    "negative": (
        "cuts its full-year profit forecast",
        "posts its weakest quarter in {small} years",
        "scraps the dividend",
        "loses a {high} million euro order from a {customer}",
        "sees operating profit fall to {low} million euros from {high} million",
        "misses analysts' estimates as sales drop {low} %",
        "swings to a loss of {low} million euros",
        "warns that it may breach the terms of its loans",
        "recalls {high} thousand products over a safety fault",
        "will lay off {high} employees",
        "loses market share in {region}",
        "is fined {low} million euros by the regulator",
        "halts production at its main plant",
        "reports that margins shrank by {small} percentage points",
        "fails to win approval for its new product in {region}",
        "shares slump {small} % after poor results",
    ),
    "neutral": (
        "will publish its interim report on {small} {month}",
        "appoints a new head of {department}",
        "holds its annual meeting on {small} {month}",
        "moves its head office to another building in the same city",
        "changes the name of its {department} unit",
        "has {high} employees in {region}",
        "was founded {high} years ago",
        "leaves its forecast unchanged",
        "says sales were level with last year at {high} million euros",
        "will present its {department} team at a trade fair in {month}",
        "renews its contract with its auditor",
        "keeps the dividend at last year's level",
        "has offices in {small} countries, including {region}",
        "invites reporters to a briefing about its {department} plans in {month}",
        "elects {small} members to its board, all of whom served before",
        "states that its shares are listed in {region}",
    ),
}  # fmt: skip
# The first four stand under every label, so that the end of a headline does not always give it away.
_TAILS = ("", ", the company said on {day}", ", according to a filing", ", a spokesperson said in {month}")
_REASONS = {
    "positive": (" as demand picks up", " thanks to lower costs", " after a strong {month}"),
    "negative": (" as demand dries up", " because of rising costs", " after a weak {month}"),
    "neutral": (" as announced earlier", " in line with its calendar", ", as in earlier years"),
}

_CUSTOMERS = ("public transport", "hospital", "defence", "carmaker", "supermarket", "university", "farming")
_REGIONS = ("Finland", "Brazil", "Canada", "southern Europe", "Japan", "the Baltic states", "Mexico", "India")
_DEPARTMENTS = ("marketing", "research", "legal affairs", "human resources", "purchasing", "design")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
_MONTHS = ("January", "March", "April", "May", "June", "August", "September", "October", "November")


def examples(rng: random.Random) -> list[Example]:
    """Draw headlines, the same number for each label, in random order."""
    drawn = [_draw(rng, label) for label in CHOICES for _ in range(_NUM_EACH)]
    rng.shuffle(drawn)
    return drawn


def _draw(rng: random.Random, label: str) -> Example:
    low, high = rng.randrange(2, 45), rng.randrange(50, 400)
    pattern = "{company} " + rng.choice(_EVENTS[label]) + rng.choice(_TAILS + _REASONS[label])
    headline = pattern.format(
        company=rng.choice(_COMPANIES),
        customer=rng.choice(_CUSTOMERS) + " customer",
        low=low,
        high=high,
        small=rng.randrange(2, 20),
        region=rng.choice(_REGIONS),
        department=rng.choice(_DEPARTMENTS),
        day=rng.choice(_DAYS),
        month=rng.choice(_MONTHS),
    )
    return Example(
        instruction=rng.choice(_QUESTIONS),
        context=headline + ".",
        response=label,
        domain="finance",
        label=label,
        choices=CHOICES,
    )
