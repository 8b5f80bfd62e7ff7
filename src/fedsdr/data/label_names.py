"""Labels and choices in the forms that data sets use: numbers with names, letters, lists in the prompt.

Input: the values in a row's label and choices columns. Output: the label and its choices.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from fedsdr.data.files import BadRow, class_name, cut, parse_json, refuse

ITEM = re.compile(r"\s*(?:[-*•]|\(?[A-Za-z0-9]{1,2}[.):])\s*(\S.*?)\s*")
"""A line of a list of options."""


def read_choices(place: str, value: Any) -> tuple[list[str], list[str]]:
    """Texts of the choices, and their letters if the row has them.

    Args:
        place: Place of the row, for errors.
        value: A list of texts; {"text": [...], "label": [...]} as in ARC; texts keyed by letter as in MedQA;
            or one of these as JSON text, as in a CSV cell.

    Raises:
        BadRow: The value has another form.
    """
    if isinstance(value, str) and value.startswith("{"):
        value = parse_json(f"{place}, choices", value)
    letters: Any = []
    if isinstance(value, dict):
        is_arc = isinstance(value.get("text"), list)
        letters, value = (
            (value.get("label", []), value["text"]) if is_arc else (list(value), list(value.values()))
        )
    texts = read_texts(place, "choices", value)
    letters = read_texts(place, "letters of the choices", letters)
    if letters and len(letters) != len(texts):
        refuse(place, "choices", value, f"one text for each of the letters {cut(list(letters))}")
    return list(texts), list(letters)


def choices_in_prompt(prompt: str, marker: str) -> list[str]:
    """Options listed in a prompt on the lines after a marker, such as "OPTIONS:"; [] if there are none."""
    _, found, after = prompt.rpartition(marker)
    choices: list[str] = []
    for line in after.strip().splitlines() if found else []:
        item = ITEM.fullmatch(line)
        if not item:
            break
        choices.append(item[1])
    return choices


def read_label(
    place: str, value: Any, names: Sequence[str], texts: Sequence[str], letters: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """The label and its choices; "" if the row has no label.

    A number is an index into the names (from 0), or into the choices. A letter remains a letter, and then
    the choices are letters.

    Args:
        place: Place of the row, for errors.
        value: Value in the label column.
        names: Names of numbered labels, from the settings.
        texts: Texts of the row's choices.
        letters: Letters of the row's choices, if it has them.

    Raises:
        BadRow: The label is not one of the choices.
    """
    known = tuple(names or letters or texts)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):  # true and false are 1 and 0
        if not value < len(known):
            many = f"one of the {len(known)} choices" if known else "text"
            raise BadRow(
                place,
                "label without a name",
                f"label: found {type(value).__name__} {value}; expected {many}; numbered labels get"
                ' their names by label_names = ["...", "..."], 0 first; columns = {label = ""} switches the'
                " field off",
            )
        return class_name(value, known) or "", known
    if value is None or value == "":
        return "", known
    if not isinstance(value, str):
        refuse(place, "label", value, "text, or the number of one of label_names")
    value = whole_text(place, "label", value)
    if names and value not in names:
        number = letters.index(value) if value in letters else int(value) if value.isdecimal() else len(names)
        if number < len(names):
            return names[number], known
    for some in (known, tuple(texts)):
        if not some or value in some:
            return value, some
    letter, few_letters = value.strip("(). "), tuple(ascii_uppercase[: len(texts)])
    if names or letters or letter not in few_letters:
        refuse(place, "label", value, f"one of the choices {cut(list(known))}")
    return letter, few_letters


def lettered(place: str, value: Any) -> str:
    """The choices as lines of a prompt: "A. red"."""
    texts, letters = read_choices(place, value)
    return "\n".join(f"{a}. {text}" for a, text in zip(letters or ascii_uppercase, texts, strict=False))


def read_texts(place: str, field: str, value: Any) -> tuple[str, ...]:
    """A list of non-empty texts, possibly given as JSON text.

    Raises:
        BadRow: The value has another form.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str) and value.startswith("["):
        # A cell of a CSV file holds a list as JSON.
        value = parse_json(f"{place}, {field}", value)
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        refuse(place, field, value, "a list of non-empty texts")
    return tuple(whole_text(place, field, item) for item in value)


def whole_text(place: str, field: str, text: str) -> str:
    """Return the text if UTF-8 can encode it.

    Raises:
        BadRow: It contains half of a surrogate pair.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        refuse(place, field, ascii(text), "text in UTF-8, but half of a surrogate pair is missing")
    return text
