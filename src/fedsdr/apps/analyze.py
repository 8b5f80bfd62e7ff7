"""`fedsdr analyze`: rewritings in a plain file of pairs, without any run."""

from pathlib import Path

from fedsdr.data.examples import Example
from fedsdr.data.readers import Row, file_rows, to_records
from fedsdr.errors import UserError

SEED = 0
"""Of the draws: the same file gives the same numbers."""


def read_pairs(path: Path) -> list[tuple[Example, str]]:
    """Read examples with their rewritings.

    Args:
        path: A file of examples, as `data.readers.read_file` takes it, whose rows have `distilled` too and,
            if there are domains, `domain`.

    Raises:
        UserError: With file and line, what was found there and what was expected.
    """
    rows = file_rows(path)
    examples = [to_records([row], str(row[1].get("domain") or "all"))[0].example for row in rows]
    return list(zip(examples, map(_rewriting, rows), strict=True))


def _rewriting(row: Row) -> str:
    place, values = row
    found = values.get("distilled")
    if not isinstance(found, str) or not found.strip():
        raise UserError(f"{place}: distilled = {found!r}; expected the rewriting of the output, a text")
    return found
