"""General knowledge: short questions, answered in the voice of an encyclopaedia."""

import random
from collections.abc import Iterator

from fedsdr.data.examples import Example
from tools.demo_data.general_facts import ANIMALS, BOOKS, COUNTRIES, ELEMENTS, EVENTS, SINGLE


def examples(rng: random.Random) -> list[Example]:
    """Ask for every fact in three wordings, in random order."""
    drawn = [
        Example(instruction=question, response=answer, domain="general", facts=(fact,))
        for questions, answers, fact in _all_facts()
        for question, answer in zip(rng.sample(questions, 3), rng.choices(answers, k=3), strict=True)
    ]
    rng.shuffle(drawn)
    return drawn


def _all_facts() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Yield questions, answers to any of them, and the phrase that every true answer contains."""
    for country, capital, continent, currency in COUNTRIES:
        yield (
            (
                f"What is the capital of {country}?",
                f"Which city is the seat of government of {country}?",
                f"Name {country}'s capital city.",
                f"I forgot the capital of {country}. Can you tell me?",
            ),
            (
                f"The capital of {country} is {capital}. The country lies in {continent}, and its currency is"
                f" the {currency}.",
                f"{capital} is the capital city of {country}, a country in {continent} that pays in the"
                f" {currency}.",
            ),
            capital,
        )
        yield (
            (
                f"Which currency is used in {country}?",
                f"How do people in {country} pay: what is the money called?",
                f"Name the currency of {country}.",
                f"Travelling to {country}: what money will I need?",
            ),
            (
                f"The currency of {country} is the {currency}. The country lies in {continent}, with"
                f" {capital}"
                f" as its capital.",
                f"People in {country} pay in the {currency}. Its capital is {capital}, and it belongs to"
                f" {continent}.",
            ),
            currency,
        )
    for name, symbol, number, use in ELEMENTS:
        yield (
            (
                f"What is the chemical symbol of {name}?",
                f"How do chemists abbreviate {name}?",
                f"Give the symbol for {name} in the periodic table.",
            ),
            (
                f"The chemical symbol of {name} is {symbol}. It stands in place {number} of the periodic"
                f" table"
                f" and is {use}.",
                f"In the periodic table {name} is written as {symbol}, with atomic number {number}. It is"
                f" {use}.",
            ),
            symbol,
        )
        yield (
            (
                f"What is the atomic number of {name}?",
                f"How many protons does an atom of {name} have?",
                f"Where in the periodic table does {name} stand?",
            ),
            (
                f"The atomic number of {name} is {number}, so each of its atoms has {number} protons. It is"
                f" {use}.",
                f"An atom of {name}, written {symbol}, has {number} protons. This makes {number} its atomic"
                f" number.",
            ),
            str(number),
        )
    for title, author, year in BOOKS:
        yield (
            (
                f"Who wrote {title}?",
                f"Which author is known for {title}?",
                f"{title}: whose work is it?",
            ),
            (
                f"{title} was written by {author}. The work first appeared in {year} and is still widely"
                f" read.",
                f"The author of {title} is {author}. It was first published in {year} and counts as a"
                f" classic.",
            ),
            author,
        )
    for event, year, note in EVENTS:
        yield (
            (
                f"Name the year in which {event}.",
                f"When was it that {event}?",
                f"{event[0].upper()}{event[1:]}: what was the year?",
            ),
            (
                f"In the year {year}, {event}. {note}",
                f"It was in {year} that {event}. {note}",
            ),
            str(year),
        )
    for animal, young, group, diet in ANIMALS:
        yield (
            (
                f"What is a young {animal} called?",
                f"Which word names the young of the {animal}?",
                f"What do you call the {animal} while it is still a baby?",
            ),
            (
                f"A young {animal} is called a {young}. The {animal} belongs to the {group} and feeds"
                f" {diet}.",
                f"The young of the {animal} is known as a {young}. Like its parents, it is one of the"
                f" {group}.",
            ),
            young,
        )
        yield (
            (
                f"To which class of animals does the {animal} belong?",
                f"Mammal, bird, fish or amphibian: what kind of animal is the {animal}?",
                f"How do zoologists class the {animal}?",
            ),
            (
                f"Zoologists count the {animal} among the {group}. It feeds {diet}, and its young is called a"
                f" {young}.",
                f"The {animal} belongs to the {group}, and its young is called a {young}. It feeds {diet}.",
            ),
            group,
        )
    for questions, answer, facts in SINGLE:
        yield questions, (answer,), facts[0]
