"""Recorded conversations: questions, answers and the earlier turns.

Input: a list of turns in the forms of chat data sets (messages with `role` and `content`, ShareGPT with
`from` and `value`). Output: exchanges, one for each trained answer, with the earlier ones as history.
"""

from dataclasses import dataclass
from typing import Any

from fedsdr.data.files import BadRow, refuse
from fedsdr.data.label_names import whole_text

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
TOOLS = (
    "tool",
    "function",
    "function_call",
    "function_response",
    "observation",
    "tool_call",
    "tool_response",
)
"""Roles of turns that call a tool, or that hold its result."""
HISTORY = "a list of (question, answer) pairs"


@dataclass(frozen=True)
class Exchange:
    """A question, its answer, and the earlier exchanges."""

    question: str
    answer: str
    system: str
    history: tuple[tuple[str, str], ...]
    """Earlier questions with their answers."""


def exchanges(place: str, turns: Any, train_on: str) -> list[Exchange]:
    """Split a conversation into exchanges: the last answer, or each one, with everything before it.

    An unanswered question at the end is skipped. Answers with `weight` 0, which the data set excludes from
    training, appear only in the history.

    Args:
        place: Place of the row, for errors.
        turns: A list of objects with role and content, or from and value.
        train_on: "last" or "all": which answers to train on.

    Raises:
        BadRow: It is not a text conversation between a user and an assistant.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        refuse(place, "messages", turns, "a list of objects with role and content (or from and value)")
    said = [(*_said(place, turn), turn.get("weight") != 0) for turn in turns]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    if said and said[-1][0] == "user":
        said.pop()
    roles = [role for role, _, _ in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2):
        raise BadRow(
            place,
            "roles out of order",
            f"roles: found {', '.join(roles[:8]) or 'no answer'}; expected system (optional), then user and"
            " assistant alternating, starting with user",
        )
    if not said[-1][2]:
        raise BadRow(
            place, "last answer not to be trained on", "the last answer has weight 0: leave such rows out"
        )
    pairs = [(said[n][1], said[n + 1][1]) for n in range(0, len(said), 2)]
    first = 0 if train_on == "all" else len(pairs) - 1
    return [
        Exchange(*pairs[n], system, tuple(pairs[:n])) for n in range(first, len(pairs)) if said[2 * n + 1][2]
    ]


def history_of(place: str, value: Any, is_mapped: bool) -> tuple[tuple[str, str], ...]:
    """Earlier exchanges from a separate column, as pairs of texts.

    Unless `columns` names it, a plain text under that key is something else, such as a patient's history.

    Raises:
        BadRow: They are not pairs of texts.
    """
    if value is None or (isinstance(value, str) and not is_mapped):
        return ()
    if not isinstance(value, list):
        refuse(place, "history", value, HISTORY)
    for pair in value:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            refuse(place, "history", pair, HISTORY)
    return tuple((question, answer) for question, answer in value)


def _said(place: str, turn: dict[str, Any]) -> tuple[str, str]:
    """Role and text of a turn."""
    role = str(turn.get("role") or turn.get("from")).lower()
    if role in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise BadRow(
            place,
            "tool calls",
            "the conversation calls tools, which fedsdr does not train: leave such rows out",
        )
    if role not in ROLES:
        refuse(place, "role", turn.get("role") or turn.get("from"), "system, user (human) or assistant (gpt)")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if isinstance(content, list):  # parts, as in OpenAI's API
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRow(
                place, "not only text", "the conversation holds images or sound: leave such rows out"
            )
        content = "\n".join(str(part.get("text")) for part in content)
    if not isinstance(content, str):
        refuse(place, f"{role}'s turn", content, "text")
    if not content.strip() and ROLES[role] != "system":
        raise BadRow(place, "empty turn", f"{role}'s turn is empty; expected text")
    return ROLES[role], whole_text(place, f"{role}'s turn", content)
