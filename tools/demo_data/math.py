"""Mathematics: word problems of one to three steps, worked in full sentences."""

import random
from collections.abc import Callable

from fedsdr.data.examples import Example

_NUM_EACH = 24  # of each problem below; more than is needed, since near copies are dropped

_NAMES = (
    "Ada", "Amir", "Bea", "Carlos", "Chen", "Dina", "Elif", "Farid", "Greta", "Hugo", "Ines", "Ivan", "Jana",
    "Kofi", "Lena", "Marek", "Mina", "Nils", "Olga", "Pia", "Ravi", "Rosa", "Sven", "Tara", "Uma", "Yusuf",
)  # fmt: skip
_THINGS = (
    "apples", "marbles", "pencils", "stickers", "shells", "buttons", "postcards", "cookies", "beads", "coins",
    "lemons", "tickets", "badges", "candles", "stamps", "ribbons",
)  # fmt: skip
_GOODS = ("notebooks", "mugs", "scarves", "plants", "caps", "puzzles", "lamps", "kites", "baskets", "towels")
_BOXES = ("boxes", "bags", "crates", "jars", "trays", "baskets")
_BAKED = ("muffins", "rolls", "pies", "pretzels", "waffles", "scones")

Problem = tuple[str, str, int]
"""Question, working, final answer."""


def examples(rng: random.Random) -> list[Example]:
    """Draw problems of every kind, in random order."""
    drawn = [_as_example(*problem(rng)) for problem in _PROBLEMS for _ in range(_NUM_EACH)]
    rng.shuffle(drawn)
    return drawn


def _as_example(question: str, working: str, answer: int) -> Example:
    return Example(
        instruction=question,
        response=f"{working} The answer is {answer}.",
        domain="math",
        answer=str(answer),
    )


def _gain(rng: random.Random) -> Problem:
    name, friend = rng.sample(_NAMES, 2)
    thing, a, b = rng.choice(_THINGS), rng.randint(5, 40), rng.randint(3, 30)
    return (
        f"{name} has {a} {thing}. {friend} gives {name} {b} more. How many {thing} does {name} have now?",
        f"{name} starts with {a} {thing} and gets {b} more from {friend}. Together that is {a} + {b} ="
        f" {a + b}.",
        a + b,
    )


def _loss(rng: random.Random) -> Problem:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b, c = rng.randint(30, 60), rng.randint(3, 14), rng.randint(3, 14)
    return (
        f"There are {a} {thing} on the table. {name} takes {b} in the morning and {c} at night."
        f" How many are left on the table?",
        f"{name} takes {b} + {c} = {b + c} {thing} in all. Of the {a} on the table, {a} - {b + c} ="
        f" {a - b - c} are left.",
        a - b - c,
    )


def _boxes(rng: random.Random) -> Problem:
    thing, box = rng.choice(_THINGS), rng.choice(_BOXES)
    a, b = rng.randint(3, 9), rng.randint(4, 12)
    return (
        f"A shop receives {a} {box} with {b} {thing} in each. How many {thing} arrive altogether?",
        f"Each of the {a} {box} holds {b} {thing}. To find all of them we multiply: {a} x {b} = {a * b}"
        f" {thing}.",
        a * b,
    )


def _boxes_and_loose(rng: random.Random) -> Problem:
    name, thing, box = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_BOXES)
    a, b, c = rng.randint(3, 8), rng.randint(4, 10), rng.randint(2, 9)
    return (
        f"{name} fills {a} {box} with {b} {thing} each and has {c} left over."
        f" How many {thing} were there at the start?",
        f"The {box} hold {a} x {b} = {a * b} {thing}. With the {c} left over there were {a * b} + {c} ="
        f" {a * b + c}.",
        a * b + c,
    )


def _share(rng: random.Random) -> Problem:
    name, thing, a, b = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(3, 9), rng.randint(3, 9)
    return (
        f"{name} shares {a * b} {thing} equally among {a} children. How many does every child get?",
        f"There are {a * b} {thing} for {a} children. We divide to find each share: {a * b} / {a} = {b}"
        f" {thing}.",
        b,
    )


def _bill(rng: random.Random) -> Problem:
    name, good, price, n = rng.choice(_NAMES), rng.choice(_GOODS), rng.randint(2, 9), rng.randint(2, 6)
    paid = 50 if price * n < 50 else 60
    return (
        f"{name} buys {n} {good} at {price} euros apiece and pays with {paid} euros. How much change is due?",
        f"The {good} cost {n} x {price} = {n * price} euros. The change is {paid} - {n * price} ="
        f" {paid - n * price} euros.",
        paid - n * price,
    )


def _two_goods(rng: random.Random) -> Problem:
    name, (good, other) = rng.choice(_NAMES), rng.sample(_GOODS, 2)
    a, b, p, q = (rng.randint(2, 6) for _ in range(4))
    return (
        f"At the market {name} picks {a} {good} for {p} dollars each and {b} {other} for {q} dollars each."
        f" What is the total price?",
        f"The {good} cost {a} x {p} = {a * p} dollars and the {other} cost {b} x {q} = {b * q} dollars."
        f" In total {a * p} + {b * q} = {a * p + b * q} dollars.",
        a * p + b * q,
    )


def _speed(rng: random.Random) -> Problem:
    what = rng.choice(("train", "bus", "cyclist", "ferry", "truck", "runner"))
    v = rng.randint(8, 14) if what in ("cyclist", "runner") else 10 * rng.randint(3, 9)
    h = rng.randint(2, 6)
    return (
        f"A {what} keeps a speed of {v} km per hour for {h} hours. How many kilometres does it cover?",
        f"Distance is speed times time. The {what} covers {v} km in every hour, so in {h} hours it covers"
        f" {v} x {h} = {v * h} km.",
        v * h,
    )


def _savings(rng: random.Random) -> Problem:
    name, a, b = rng.choice(_NAMES), rng.randint(3, 9), rng.randint(4, 9)
    c = rng.randint(5, 20)
    return (
        f"{name} saves {a} euros a week for {b} weeks and already had {c} euros. How big are the savings"
        f" now?",
        f"In {b} weeks {name} saves {b} x {a} = {a * b} euros. Adding the first {c} euros gives"
        f" {a * b} + {c} = {a * b + c} euros.",
        a * b + c,
    )


def _age(rng: random.Random) -> Problem:
    (name, other), a, b, c = rng.sample(_NAMES, 2), rng.randint(5, 15), rng.randint(2, 9), rng.randint(2, 9)
    return (
        f"{name} is {a} years old, and {other} is {b} years older. How old will {other} be in {c} years?",
        f"{other} is {a} + {b} = {a + b} years old today. In {c} years the age will be"
        f" {a + b} + {c} = {a + b + c}.",
        a + b + c,
    )


def _half(rng: random.Random) -> Problem:
    (name, friend), thing, a = rng.sample(_NAMES, 2), rng.choice(_THINGS), rng.randint(4, 20)
    b = rng.randint(2, a - 1)
    return (
        f"Half of the {2 * a} {thing} that {name} owns go to {friend}, and {b} more get lost. What number"
        f" remains?",
        f"Half of {2 * a} is {a}, so {name} keeps {a} {thing}. After {b} get lost, {a} - {b} = {a - b}"
        f" remain.",
        a - b,
    )


def _perimeter(rng: random.Random) -> Problem:
    place = rng.choice(("garden", "field", "playground", "yard", "car park"))
    a, b = rng.randint(5, 20), rng.randint(3, 12)
    return (
        f"A rectangular {place} is {a} m long and {b} m wide. How long is a fence around it, in metres?",
        f"One length and one width make {a} + {b} = {a + b} m. The fence runs along each twice:"
        f" 2 x {a + b} = {2 * (a + b)} m.",
        2 * (a + b),
    )


def _area(rng: random.Random) -> Problem:
    place, name = rng.choice(("floor", "wall", "carpet", "roof", "terrace")), rng.choice(_NAMES)
    a, b = rng.randint(3, 12), rng.randint(2, 9)
    return (
        f"{name} measures a rectangular {place}: {a} m by {b} m. What is its area in square metres?",
        f"The area of a rectangle is its length times its width. For this {place} that is {a} x {b} ="
        f" {a * b} square metres.",
        a * b,
    )


def _bakery(rng: random.Random) -> Problem:
    baked, name, a, b = rng.choice(_BAKED), rng.choice(_NAMES), rng.randint(3, 8), rng.randint(6, 12)
    sold = rng.randint(5, a * b - 2)
    return (
        f"Baker {name} puts {b} {baked} on each of {a} trays and sells {sold} of them. How many {baked} stay"
        f" unsold?",
        f"The trays hold {a} x {b} = {a * b} {baked}. After {sold} are sold, {a * b} - {sold} ="
        f" {a * b - sold} stay unsold.",
        a * b - sold,
    )


def _reading(rng: random.Random) -> Problem:
    name, a, b = rng.choice(_NAMES), rng.randint(5, 20), rng.randint(3, 9)
    return (
        f"A book has {a * b} pages. {name} reads {a} pages every evening. After how many evenings is it"
        f" finished?",
        f"{name} reads {a} pages in one evening. The whole book needs {a * b} / {a} = {b} evenings.",
        b,
    )


def _times(rng: random.Random) -> Problem:
    (name, other), thing = rng.sample(_NAMES, 2), rng.choice(_THINGS)
    a, b = rng.randint(3, 12), rng.randint(2, 5)
    return (
        f"{other} found {b} times as many {thing} as {name}, who found {a}. How many did the two find"
        f" together?",
        f"{other} found {b} x {a} = {a * b} {thing}. Together with the {a} of {name} that makes"
        f" {a * b} + {a} = {a * b + a}.",
        a * b + a,
    )


def _wages(rng: random.Random) -> Problem:
    name, job = rng.choice(_NAMES), rng.choice(("gardener", "tutor", "waiter", "painter", "driver"))
    a, b, c = rng.randint(10, 20), rng.randint(3, 6), rng.randint(2, 5)
    return (
        f"As a {job}, {name} earns {a} dollars an hour and works {b} hours a day. What are the wages for {c}"
        f" days?",
        f"In one day {name} earns {a} x {b} = {a * b} dollars. For {c} days that is {a * b} x {c} ="
        f" {a * b * c} dollars.",
        a * b * c,
    )


def _percent(rng: random.Random) -> Problem:
    good, share, price = rng.choice(_GOODS), rng.choice((10, 20, 25, 50)), 20 * rng.randint(1, 10)
    off = price * share // 100
    return (
        f"A set of {good} costs {price} euros. In the sale it is {share} percent cheaper. What is the sale"
        f" price?",
        f"The discount is {share} percent of {price}, which is {off} euros. The sale price is"
        f" {price} - {off} = {price - off} euros.",
        price - off,
    )


def _bus(rng: random.Random) -> Problem:
    vehicle = rng.choice(("bus", "tram", "lift", "boat"))
    a, b, c = rng.randint(12, 30), rng.randint(2, 11), rng.randint(2, 15)
    return (
        f"{a} people ride in a {vehicle}. At the next stop {b} get off and {c} get on. How many ride on?",
        f"When {b} people get off, {a} - {b} = {a - b} stay in the {vehicle}. Then {c} get on, which makes"
        f" {a - b} + {c} = {a - b + c}.",
        a - b + c,
    )


def _mean(rng: random.Random) -> Problem:
    name, game = rng.choice(_NAMES), rng.choice(("darts", "bowling", "archery", "a quiz", "golf", "chess"))
    mean, d, e = rng.randint(6, 20), rng.randint(1, 5), rng.randint(1, 5)
    a, b, c = mean - d, mean + d + e, mean - e
    return (
        f"In three rounds of {game} {name} scores {a}, {b} and {c} points. What is the average per round?",
        f"The three rounds give {a} + {b} + {c} = {3 * mean} points. Divided by three rounds the average is"
        f" {3 * mean} / 3 = {mean}.",
        mean,
    )


_PROBLEMS: tuple[Callable[[random.Random], Problem], ...] = (
    _gain, _loss, _boxes, _boxes_and_loose, _share, _bill, _two_goods, _speed, _savings, _age, _half,
    _perimeter, _area, _bakery, _reading, _times, _wages, _percent, _bus, _mean,
)  # fmt: skip
