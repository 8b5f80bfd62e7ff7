"""The words of the program: comments, docstrings, help texts and messages."""

import re
import tokenize
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fedsdr"
QUOTES = ("data/truth/", "model/tiny.py")  # patterns of answers, and text that a tokenizer learns from
OLD = re.compile(
    r"\b(told|tells?|beside|at hand|anew|go(es)? on|gone on with|learnt|what would do|speaks? against"
    r"|(to|cannot) be had|one's own|and the like)\b",
    re.IGNORECASE,
)
WORDS = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in SOURCE.rglob("*.py")}), ids=lambda p: p.name
)
def test_old_phrases_are_gone(folder: Path):
    found = [
        f"{path.name}:{token.start[0]}: {token.string}"
        for path in folder.glob("*.py")
        if not str(path.relative_to(SOURCE)).startswith(QUOTES)
        for token in tokenize.tokenize(path.open("rb").readline)
        if token.type in WORDS and OLD.search(token.string)
    ]
    assert found == []
