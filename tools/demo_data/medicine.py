"""Medicine: first aid and nutrition in a careful, caring voice. Shows a voice; is no medical advice."""

import random
from collections.abc import Iterator

from fedsdr.data.examples import Example
from tools.demo_data.blocks import Block
from tools.demo_data.medicine_facts import ADVICE, NUTRIENTS

_FRAMES = (
    "What should I know about {subject}?",
    "Please advise me on {subject}.",
    "What matters most with {subject}?",
    "I worry about {subject}. Can you help?",
    "Give me some simple advice on {subject}.",
    "A friend asked me about {subject}. What do I answer?",
)


def examples(rng: random.Random) -> list[Example]:
    """Ask about every subject in several wordings, in random order."""
    drawn = [
        Example(instruction=question, response=answer, domain="medicine", facts=facts)
        for questions, answer, facts in _all_advice(rng)
        for question in questions
    ]
    rng.shuffle(drawn)
    return drawn


def _all_advice(rng: random.Random) -> Iterator[Block]:
    for (subject, *questions), answer, facts in ADVICE:
        frames = [frame.format(subject=subject) for frame in rng.sample(_FRAMES, 2)]
        yield Block((*questions, *(frame[0].upper() + frame[1:] for frame in frames)), answer, facts)
    for name, role, role_key, sources, source_key, lack, lack_key in NUTRIENTS:
        title = name[0].upper() + name[1:]
        yield Block(
            (
                f"What does {name} do in the body?",
                f"Why do we need {name}?",
                f"{title}: what is it good for?",
            ),
            f"{title} {role}. You find it in {sources}. Most people get enough from varied meals, so please"
            f" ask your doctor before you take supplements.",
            (role_key,),
        )
        yield Block(
            (
                f"Where do I get {name}?",
                f"Which foods or other sources give me {name}?",
                f"I want more {name}. What should I look for?",
            ),
            f"Good sources of {name} are {sources}. It {role}, so try to have some regularly. If you are"
            f" worried about your diet, a doctor or dietitian can advise you.",
            (source_key,),
        )
        yield Block(
            (
                f"What happens if I lack {name}?",
                f"How does too little {name} show?",
                f"Is a shortage of {name} harmful?",
            ),
            f"Too little {name} over a long time can lead to {lack}, because it {role}. Please see a doctor"
            f" if you suspect this, rather than treating yourself with pills.",
            (lack_key,),
        )
