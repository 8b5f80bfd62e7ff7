"""Find the Python program in an answer: in fenced blocks, or between sentences.

Input: a text. Output: source code; nothing runs here.
"""

import ast
import re
import textwrap

_FENCE = re.compile(r"^(?P<indent>[ \t]*(?:>[ \t]?)*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
_INLINE = re.compile(r"```(?:(?:python3?|py)\b)?[ \t]*(?P<code>[^`\n][^`]*?)```", re.IGNORECASE)
_PYTHON = ("python", "python3", "py", "py3", "python 3")
_BEGINS = re.compile(r"(?:async def|def|class)\s+\w|import \w|from [\w.]+ import |@\w")


def extract_code(text: str) -> str:
    """Return the program of the text.

    That is the first fenced block marked as Python; otherwise the first one without a language; otherwise
    the first one. A fence may be indented, as in a list (the block is then dedented), and may be unclosed.
    Without fences it is the lines from the first definition or import, as far as Python can parse them. A
    text that is one program, or contains none, is returned unchanged, with its indentation.
    """
    return programs(text)[0]


def programs(text: str) -> list[str]:
    """Return candidate programs: first `extract_code`, then all blocks joined if there are several.

    Models often put a helper and the function that needs it into separate blocks.
    """
    blocks = _blocks(text)
    if not blocks:
        return [_between_sentences(text)]
    for wanted in (_PYTHON, ("",)):
        if found := [code for language, code in blocks if language in wanted]:
            return [found[0], "\n\n".join(found)] if len(found) > 1 else found
    return [blocks[0][1]]


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and inside of each fenced block."""
    blocks: list[tuple[str, list[str]]] = []
    opened: re.Match[str] | None = None
    for line in text.splitlines(keepends=True):
        bare = line.rstrip()
        if opened is None:
            if opened := _FENCE.match(bare):
                blocks.append((_language(opened["info"]), []))
            continue
        if re.fullmatch(rf"[ \t>]*{re.escape(opened['fence'])}{re.escape(opened['fence'][0])}*", bare):
            opened = None
        elif bare.endswith(opened["fence"]):  # closed at the end of a line of code
            blocks[-1][1].append(bare[: -len(opened["fence"])])
            opened = None
        else:
            blocks[-1][1].append(line.removeprefix(opened["indent"]))
    found = [(language, _dedent("".join(lines))) for language, lines in blocks]
    return found or [("", one["code"]) for one in _INLINE.finditer(text)]


def _language(info: str) -> str:
    """Treat "python", "Python title=x" and "{.python .numberLines}" as the same language."""
    words = re.findall(r"[a-z0-9+#]+", info.lower())
    return words[0] if words else ""


def _dedent(code: str) -> str:
    """Remove the common indentation of a definition; the body of a function keeps its own."""
    return textwrap.dedent(code) if _BEGINS.match(code.lstrip()) else code


def _between_sentences(text: str) -> str:
    if _is_program(text):
        return text
    lines = text.splitlines(keepends=True)
    runs, start = [], 0
    while start < len(lines):
        ends = range(len(lines), start, -1) if _BEGINS.match(lines[start].lstrip()) else ()
        codes = ((end, textwrap.dedent("".join(lines[start:end]))) for end in ends)
        end, code = next((found for found in codes if _is_program(found[1])), (start + 1, ""))
        runs.append(code)
        start = end
    return "".join(runs) or text


def _is_program(code: str) -> bool:
    """Whether Python parses it, and no line is a bare word: "Done" is an expression to Python."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(
        not isinstance(one, ast.Expr) or isinstance(one.value, (ast.Call, ast.Constant)) for one in body
    )
