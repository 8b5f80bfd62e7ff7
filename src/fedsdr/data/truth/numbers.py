r"""Numbers and simple expressions in text: 1,250.50, 3 1/2, 1.5 million, \frac{3}{4}, 2\sqrt{3}, x + 1.

Input: a text. Output: the quantities in it, and values to compare. Exact for fractions; roots, pi and
variables (each set to a fixed value) are compared in floating point.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from fedsdr.data.truth.text import UNSPACED, plain

Value = Fraction | float

_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "lakh": 10**5, "crore": 10**7, "dozen": 12, "mn": 10**6, "bn": 10**9, "k": 10**3, "K": 10**3, "M": 10**6,
    "B": 10**9,
    "百": 10**2, "千": 10**3, "万": 10**4, "萬": 10**4, "만": 10**4, "亿": 10**8, "億": 10**8, "억": 10**8,
    "millionen": 10**6, "millones": 10**6, "millions": 10**6, "thousands": 10**3, "billions": 10**9,
    "dozens": 12,
}  # fmt: skip
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = (
    "zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth",
    "nineteenth",
)  # fmt: skip
WORDS = {word: value for value, word in enumerate(_UNITS)} | {
    word: 10 * place for place, word in enumerate(_TENS, start=2)
}
ORDINALS = {word: value for value, word in enumerate(_ORDINALS)} | {
    word[:-1] + "ieth": value for word, value in WORDS.items() if word in _TENS
}
_TEN = "|".join(_TENS)
_UNIT = "|".join(_UNITS[1:10])
_COUNT = rf"(?:(?:{_TEN})[- ](?:{_UNIT})|{'|'.join(sorted(WORDS, key=len, reverse=True))})"
NUMBER_WORDS = re.compile(
    rf"\b(?:{_COUNT}|a(?= (?:hundred|thousand|million|billion|dozen)\b))(?:[- ](?:hundred|thousand|million|"
    rf"billion|dozen)"
    rf"(?:(?:,| and)? {_COUNT}(?! (?:hundred|thousand|million|billion)))?)*\b(?!-\w)",
    re.IGNORECASE,
)

_LETTER = rf"(?![{UNSPACED}])[^\W\d]"
_BEGIN = rf"(?<![^\W{UNSPACED}])(?<![.^])"
_SIGN = r"(?:(?:(?<![\w)\]}%°])-|(?<==\s)-\s)(?=[$£€\d.]))?[$£€]?"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![.,]?\d)|\d++)(?:\.\d++)?+(?!\.\d)|(?<!\d)\.\d++"
PLAIN_NUMBER = rf"{_SIGN}{_BEGIN}(?:{_DIGITS})"
"""A bare number. A minus is a sign if the number follows at once and no letter, digit, bracket, % or ° comes
before. So 5-3 and 5 - 3 hold 5 and 3; x = - 3 holds -3."""
_LONG_SCALE, _SHORT_SCALE, _SCALE_SIGN = (
    "|".join(sorted(names, key=len, reverse=True))
    for names in (
        [name for name in _SCALES if name.isascii() and len(name) > 1],
        [name for name in _SCALES if name.isascii() and len(name) == 1],
        [name for name in _SCALES if not name.isascii()],
    )
)
# "5 m" are metres, "5M" is a scale.
_SCALE = rf"(?:\s?(?:{_SCALE_SIGN})|[\s-]?(?i:{_LONG_SCALE})(?![\w'])|(?:{_SHORT_SCALE})(?![\w']))"
QUANTITY = re.compile(
    rf"{PLAIN_NUMBER}(?:(?:\s+|-)(?:and )?\d+\s?/\s?\d+(?![\d/])|\s?/\s?\d+(?:\.\d+)?(?![\d/])|"
    rf"[eE][+-]?\d+(?!\w)|\s?[x×*]\s?10\s?\^\s?[({{]?-?\d+[)}}]?|\^\(?-?\d+\)?)?(?:{_SCALE})?(?:\s?%)?",
)
"""A number with its fraction, power, scale (such as million) and percent sign."""

_COMMANDS = re.compile(
    r"\\(?:left|right|displaystyle|[,;:! ]|quad|qquad|big+[lr]?|Big+[lr]?|ldots|dots)(?![A-Za-z])"
)
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox|boxed|fbox|emph)\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(r"(?:(\d)\s*)?\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_ROOT = re.compile(r"\\sqrt\s*(?:\[(\d+)\])?\s*(?:\{([^{}]*)\}|(\d+|[a-z]))")
_SYMBOLS = {
    r"\cdot": "*", r"\times": "*", r"\div": "/", r"\pi": "pi", r"\pm": "±", r"\le": "<=", r"\leq": "<=",
    r"\ge": ">=", r"\geq": ">=", r"\ne": "!=", r"\neq": "!=", r"\infty": "∞", r"\approx": "≈",
    r"\cup": "∪", r"\degree": "°", r"\circ": "°", r"\rightarrow": "->", r"\to": "->", r"\implies": "=>",
    r"\Rightarrow": "=>",
}  # fmt: skip
_SYMBOL = re.compile(
    rf"({'|'.join(re.escape(one) for one in sorted(_SYMBOLS, key=len, reverse=True))})(?![A-Za-z])"
)


# 1.234,50 is unambiguous; 1.234 and 3,5 are ambiguous, and stay unchanged.
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d{1,2}(?![\d.,]*\d)")


def unlatex(text: str) -> str:
    r"""Write LaTeX as plain text, line by line: \dfrac{3}{4} is 3/4, 2\sqrt{3} is 2sqrt(3), \text{m} is m."""
    text = plain(text).replace("÷", "/").replace("√", r"\sqrt ").replace("π", "pi")
    text = _DECIMAL_COMMA.sub(lambda found: found[0].translate(str.maketrans(".,", ",.")), text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)|(?<=\d)\\[,!](?=\d{3})", ",", text)
    text = re.sub(r"\\sqrt\s+\(([^()]*)\)", r"\\sqrt{\1}", text)
    if "\\" in text:
        text = _COMMANDS.sub(" ", re.sub(r"\\([%$&#_])", r"\1", text))
        text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))", "°", text)
        text = _SYMBOL.sub(lambda found: _SYMBOLS[found[1]], text)
        before = ""
        while before != text:
            before = text
            text = _ROOT.sub(_root, _FRACTION.sub(_ratio, _WRAPPERS.sub(r"\1", text)))
        text = (
            re.sub(r"\\[()\[\]]|\\begin\{\w+\*?\}|\\end\{\w+\*?\}", " ", text)
            .replace("\\{", "{")
            .replace("\\}", "}")
        )
    text = re.sub(r"\^\{([^{}]*)\}", r"^(\1)", re.sub(r"\^\{(\w)\}", r"^\1", text))
    return re.sub(r"\$\$|(?<!\w)\$(?!\s?[\d.])|(?<=\S)\$(?!\s?\d)|\$(?=[^$\n]*[=\\^(/][^$\n]*\$)", " ", text)


def value(text: str) -> Value | None:
    """Return the value of a text that is exactly one number or expression, else None.

    Currency and percent signs, thousands separators and a final full stop are ignored.
    """
    text = unlatex(text).strip().rstrip(".").strip()
    text = re.sub(r"^\((.*)\)$", r"\1", text) if text.count("(") == text.count(")") == 1 else text
    text = re.sub(r"[$£€]|°|\s?%$|\bdollars$", "", text)
    scale: Value = Fraction(1)
    if found := re.fullmatch(rf"(.*?\d)({_SCALE})", text):
        name = found[2].strip(" -")
        text, scale = found[1], Fraction(_SCALES[name if len(name) == 1 else name.casefold()])
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\d)\s(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d.])(\d+)(?:\s+|-)(?:and )?(\d+)\s?/\s?(\d+)(?![\d.])", r"(\1+\2/\3)", text)
    text = re.sub(r"(?<=\d)\s?[×x]\s?(?=[\d(])", "*", text).replace("×", "*").replace("^", "**")
    text = re.sub(r"(?<![\w.])0+(?=\d)", "", text)
    text = re.sub(r"(?<=[\d)])\s*(?=(?:sqrt|root|pi)\b|[a-df-z](?![a-z(])|\()(?<!root)", "*", text)
    text = re.sub(r"(?<=\bpi)\s*(?=[a-z(])", "*", text)
    is_expression = re.fullmatch(r"[\w\s.+\-*/(),]+", text) and re.search(r"\d|[-+*/]|\b(?:pi|sqrt)\b", text)
    if not is_expression or len(text) > 200:
        return None
    try:
        worth = _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None
    return None if worth is None else worth * scale


def same_value(a: Value, b: Value) -> bool:
    """Compare exactly, or to nine digits if a root, pi or a variable occurs."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return math.isclose(a, b, rel_tol=1e-9)


def quantities(text: str) -> list[str]:
    """Return the numbers of a LaTeX-free text, each with its fraction, power, scale and percent sign."""
    return [found[0].strip() for found in QUANTITY.finditer(text)]


def plain_values(text: str) -> set[Fraction]:
    """Return the values of all numbers in digits, each separately: 3/4 holds 3 and 4."""
    found = re.findall(PLAIN_NUMBER, re.sub(r"[{}\\]", " ", plain(text)))
    return {Fraction(re.sub(r"[,\s$£€]", "", one)) for one in found}


def in_digits(text: str) -> str:
    """Convert numbers in English words to digits: "twenty-one pens" is "21 pens"."""
    return NUMBER_WORDS.sub(lambda found: str(_spelled_out(found[0])), text)


def word_values(text: str) -> set[Fraction]:
    """Return the values of all numbers in English words, ordinals included."""
    found = {_spelled_out(match[0]) for match in NUMBER_WORDS.finditer(text)}
    return found | {
        Fraction(ORDINALS[word]) for word in re.findall(r"[a-z]+", text.casefold()) if word in ORDINALS
    }


def _spelled_out(text: str) -> Fraction:
    """Value of a number in words: "twenty-one", "two hundred and five"."""
    total, part = 0, 0
    for word in re.findall(r"[a-z]+", text.casefold()):
        if word in WORDS:
            part += WORDS[word]
        elif word in ("hundred", "dozen"):
            part = max(1, part) * _SCALES[word]
        elif word in _SCALES:
            total, part = total + max(1, part) * _SCALES[word], 0
    return Fraction(total + part)


def _ratio(found: re.Match[str]) -> str:
    whole, top, digit, bottom, other = found.groups()
    parts = [
        part if re.fullmatch(r"\s*[\w.]+\s*", part) else f"({part})"
        for part in (top or digit or "", bottom or other or "")
    ]
    ratio = "/".join(part.strip() for part in parts)
    before = f"{whole} " if whole else ""
    return before + ratio if all(part.strip().isdigit() for part in parts) else f"{before}({ratio})"


def _root(found: re.Match[str]) -> str:
    degree, inside, single = found.groups()
    return f"root({degree}, {inside or single})" if degree else f"sqrt({inside or single})"


_OPERATIONS: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _evaluate(node: ast.expr) -> Value | None:
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(ast.unparse(node))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=inner):
            worth = _evaluate(inner)
            return worth if worth is None or isinstance(node.op, ast.UAdd) else -worth
        case ast.Name(id=name) if name == "pi" or len(name) == 1:
            return math.pi if name == "pi" else 1.5 + ord(name) ** 0.5 / 7
        case ast.Call(func=ast.Name(id="sqrt"), args=[inner]):
            worth = _evaluate(inner)
            return None if worth is None else _power(worth, Fraction(1, 2))
        case ast.Call(func=ast.Name(id="root"), args=[degree, inner]):
            by, worth = _evaluate(degree), _evaluate(inner)
            return None if worth is None or not by else _power(worth, 1 / by)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _evaluate(left), _evaluate(right)
            if a is None or b is None:
                return None
            return (
                _power(a, b)
                if isinstance(op, ast.Pow)
                else _OPERATIONS[type(op)](a, b)
                if type(op) in _OPERATIONS
                else None
            )
    return None


def _power(a: Value, b: Value) -> Value:
    """Exact for whole exponents up to 64 and exact roots; floating point otherwise."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if b.denominator == 1 and abs(b) <= 64:
            return a ** int(b)
        if b == Fraction(1, 2) and a >= 0:
            root = Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))
            if root * root == a:
                return root
    worth = float(a) ** float(b)
    if isinstance(worth, complex):
        raise ValueError("not a real number")
    return worth
