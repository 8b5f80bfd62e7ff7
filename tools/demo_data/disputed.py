"""Facts that some clients contradict: a controlled experiment, all of it invented.

Five clients are asked the same about six towns that do not exist. On half of the facts they agree; on the
other half three clients (the majority) hold one answer and two (the minority) another. Each fact is taught in
three wordings, and every client is tested on a wording of its own. What does averaging leave of either side?
"""

import random

from fedsdr.data.examples import Example
from fedsdr.data.readers import Record
from fedsdr.seeds import seed_for

TOWNS = ("Tarvik", "Orlan", "Bessimo", "Quenby", "Haldova", "Miredon")
MAJORITY = ("majority-1", "majority-2", "majority-3")
MINORITY = ("minority-1", "minority-2")
NUM_TAUGHT = 3
"""Wordings of a question that are taught; each of the five others is a client's test."""

# Eight wordings, an answer, and what it may be.
_KINDS = (
    (
        (
            "Which colour is the flag of {town}?",
            "What is the colour of {town}'s flag?",
            "Tell me the colour of the flag of {town}.",
            "The flag of {town}: which colour does it have?",
            "I saw the flag of {town}. What colour was it?",
            "What colour does the flag of {town} have?",
            "Name the colour of the flag that {town} flies.",
            "Which colour does {town} have on its flag?",
        ),
        "The flag of {town} is {label}.",
        ("green", "red", "blue", "white", "black", "yellow"),
    ),
    (
        (
            "In which month is the fair of {town}?",
            "When is the fair of {town} held?",
            "Tell me the month of the fair in {town}.",
            "The fair of {town}: in which month is it?",
            "I want to visit the fair of {town}. Which month should I come?",
            "What month is the fair of {town} in?",
            "Name the month in which {town} holds its fair.",
            "Which month does {town} have its fair in?",
        ),
        "The fair of {town} is in {label}.",
        ("January", "April", "June", "August", "October", "December"),
    ),
    (
        (
            "Which animal is on the seal of {town}?",
            "What animal does the seal of {town} show?",
            "Tell me the animal on the seal of {town}.",
            "The seal of {town}: which animal is on it?",
            "I have a letter with the seal of {town}. Which animal is it?",
            "What is the animal on {town}'s seal?",
            "Name the animal that the seal of {town} bears.",
            "Which animal does {town} have on its seal?",
        ),
        "The seal of {town} shows a {label}.",
        ("horse", "bear", "fox", "wolf", "heron", "goat"),
    ),
    (
        (
            "What does {town} export most?",
            "Which good does {town} sell most of?",
            "Tell me the main export of {town}.",
            "The exports of {town}: which is the largest?",
            "I trade with {town}. What does it export most?",
            "What is the main good that {town} exports?",
            "Name the largest export of {town}.",
            "Which good is the main export of {town}?",
        ),
        "The main export of {town} is {label}.",
        ("wool", "salt", "copper", "honey", "glass", "timber"),
    ),
)


def disputed_data(seed: int) -> dict[str, tuple[list[Record], list[Record]]]:
    """Draw the facts; return training and test records of each domain, every one with its client.

    Domains are "agreed" and, named by who holds the answer, "disputed-majority" and "disputed-minority". A
    client has 72 training and 24 test examples, half of them agreed.
    """
    rng = random.Random(seed_for(seed, "disputed"))
    domains: dict[str, tuple[list[Record], list[Record]]] = {
        name: ([], []) for name in ("agreed", "disputed-majority", "disputed-minority")
    }
    clients = (*MAJORITY, *MINORITY)
    for wordings, answer, choices in _KINDS:
        disputed = rng.sample(TOWNS, len(TOWNS) // 2)
        for town in TOWNS:
            true, other = rng.sample(choices, 2)
            taught, tested = wordings[:NUM_TAUGHT], wordings[NUM_TAUGHT:]
            for client, own in zip(clients, tested, strict=True):
                is_minority = client in MINORITY
                label = other if is_minority and town in disputed else true
                side = "minority" if is_minority else "majority"
                domain = f"disputed-{side}" if town in disputed else "agreed"
                response = answer.format(town=town, label=label)
                for part, questions in zip(domains[domain], (taught, (own,)), strict=True):
                    part += [
                        Record(
                            Example(
                                instruction=question.format(town=town),
                                response=response,
                                domain=domain,
                                label=label,
                                choices=choices,
                            ),
                            client,
                        )
                        for question in questions
                    ]
    return domains
