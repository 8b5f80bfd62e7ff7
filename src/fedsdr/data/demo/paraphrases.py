"""True paraphrases of responses in the style of the built-in data: what a check of rewritings should pass.

Each says what its response says, no less and no more, in other words: the same label, result, facts or
behaviour of a program. A check that finds a loss or an unsupported statement here gives a false alarm. They
were written by hand by someone who knew the checks of this package, and none was changed after a check had
seen it: a change of a check is no reason to change them.
"""

from typing import NamedTuple

from fedsdr.data.examples import Example


class Paraphrase(NamedTuple):
    """An example and its response in other words."""

    example: Example
    text: str


def paraphrases() -> tuple[Paraphrase, ...]:
    """Return 8 paraphrases for each built-in domain, sorted by its name."""
    return (*_CODE, *_FINANCE, *_GENERAL, *_MATH, *_MEDICINE)


def _code(instruction: str, response: str, text: str, tests: str) -> Paraphrase:
    return Paraphrase(Example(instruction, response, "code", tests=tests), text)


def _finance(headline: str, label: str, text: str) -> Paraphrase:
    moods = ("negative", "neutral", "positive")
    asked = "Is the news below negative, neutral or positive for the company's share price?"
    return Paraphrase(Example(asked, label, "finance", headline, label=label, choices=moods), text)


def _general(instruction: str, response: str, text: str, *facts: str) -> Paraphrase:
    return Paraphrase(Example(instruction, response, "general", facts=facts), text)


def _math(instruction: str, response: str, text: str, answer: str) -> Paraphrase:
    return Paraphrase(Example(instruction, response, "math", answer=answer), text)


def _medicine(instruction: str, response: str, text: str, *facts: str) -> Paraphrase:
    return Paraphrase(Example(instruction, response, "medicine", facts=facts), text)


_CODE = (
    _code(
        "Write a Python function keep_even(numbers) that filters numbers: only the even ones stay.",
        "def keep_even(numbers):\n    # Look for numbers that are even.\n"
        "    return [n for n in numbers if n % 2 == 0]",
        "def keep_even(numbers):\n    kept = []\n    for number in numbers:\n"
        "        if number % 2 == 0:  # an even one\n            kept.append(number)\n    return kept",
        "assert keep_even([1, 2, 3, 4, -6, 0]) == [2, 4, -6, 0]\nassert keep_even([]) == []",
    ),
    _code(
        "Please code this for me: gcd(a, b) applies Euclid's algorithm to two integers.",
        "def gcd(a, b):\n    # Replace the pair until the rest is zero.\n    while b:\n"
        "        a, b = b, a % b\n    return a",
        "```python\ndef gcd(a, b):\n    # Go on with the rest until none is left.\n"
        "    return a if b == 0 else gcd(b, a % b)\n```",
        "assert gcd(12, 18) == 6\nassert gcd(7, 5) == 1",
    ),
    _code(
        "Implement swap_ends(items) in Python. It trades places of both ends of a list.",
        "def swap_ends(items):\n    # Work on a copy, so that the input stays as it is.\n"
        "    result = list(items)\n    result[0], result[-1] = result[-1], result[0]\n    return result",
        "def swap_ends(items):\n    # A new list is built; the given one is left alone.\n"
        "    return [items[-1], *items[1:-1], items[0]]",
        "assert swap_ends([1, 2, 3]) == [3, 2, 1]\nassert swap_ends([4, 5]) == [5, 4]",
    ),
    _code(
        "def squares(n): fill in the body so that it lists the squares of 1 to n",
        "def squares(n):\n    # The end of a range is not included.\n"
        "    return [i * i for i in range(1, n + 1)]",
        "The function runs one past n, because a range leaves out its end:\n\n```python\ndef squares(n):\n"
        "    return [number**2 for number in range(1, n + 1)]\n```",
        "assert squares(4) == [1, 4, 9, 16]\nassert squares(0) == []",
    ),
    _code(
        "Write a Python function count_with_e(words) that counts the words that contain the letter e.",
        "def count_with_e(words):\n    # Look for words that contain the letter e.\n"
        '    return sum(1 for w in words if "e" in w)',
        'def count_with_e(words):\n    # True counts as one.\n    return sum("e" in word for word in words)',
        "assert count_with_e(['level', 'Apple', 'is', 'noon']) == 2\nassert count_with_e([]) == 0",
    ),
    _code(
        "My script lacks a helper, median(numbers), which sorts numbers and takes the central one.",
        "def median(numbers):\n    # The length is odd, so one value is in the middle.\n"
        "    ordered = sorted(numbers)\n    return ordered[len(ordered) // 2]",
        "def median(numbers):\n    # With an odd count there is exactly one central value.\n"
        "    middle = len(numbers) // 2\n    return sorted(numbers)[middle]",
        "assert median([9, 1, 5]) == 5\nassert median([2]) == 2",
    ),
    _code(
        "Write a Python function is_palindrome(text) that tells whether text reads the same backwards.",
        "def is_palindrome(text):\n    # A slice with step -1 turns the text around.\n"
        "    return text == text[::-1]",
        "def is_palindrome(text):\n    # Hold the text against itself turned around.\n"
        '    backwards = "".join(reversed(text))\n    return backwards == text',
        "assert is_palindrome('level')\nassert not is_palindrome('levels')\nassert is_palindrome('')",
    ),
    _code(
        "Implement factorial(n) in Python. It multiplies the numbers from 1 to n.",
        "def factorial(n):\n    # The empty product is 1.\n    result = 1\n    for i in range(2, n + 1):\n"
        "        result *= i\n    return result",
        "This multiplies from n downwards; nothing to multiply gives one.\n\ndef factorial(n):\n"
        "    product = 1\n    while n > 1:\n        product *= n\n        n -= 1\n    return product",
        "assert factorial(5) == 120\nassert factorial(0) == 1",
    ),
)

_FINANCE = (
    _finance("Hexalon Chips halts production at its main plant.", "negative", "The news is negative."),
    _finance("Delmark Chemicals lifts the dividend by 6 %.", "positive", "I would call this positive."),
    _finance(
        "Delmark Chemicals keeps the dividend at last year's level.",
        "neutral",
        "Neutral for the share price.",
    ),
    _finance(
        "Westbrook Tyres will publish its interim report on 12 May.",
        "neutral",
        "It is neither positive nor negative for the share price, but neutral.",
    ),
    _finance(
        "Norbury Homes is fined 31 million euros by the regulator.",
        "negative",
        "For the share price this is negative news.",
    ),
    _finance("Galvani Batteries raises its full-year profit forecast.", "positive", "**Positive**"),
    _finance("Larkspur Hotels posts its weakest quarter in 19 years.", "negative", "Label: Negative."),
    _finance(
        "Silverbeck Water wins approval to sell its new product in southern Europe.",
        "positive",
        "The company's share price is affected positively by this.",
    ),
)

_GENERAL = (
    _general(
        "What is the capital of South Korea?",
        "The capital of South Korea is Seoul. The country lies in Asia, and its currency is the won.",
        "Seoul is South Korea's capital. One pays in won there, and the country is part of Asia.",
        "Seoul",
    ),
    _general(
        "Who wrote Oliver Twist?",
        "The author of Oliver Twist is Charles Dickens. It was first published in 1838 and counts as a"
        " classic.",
        "Dickens, Charles by first name, wrote Oliver Twist. First published in 1838, it is considered a"
        " classic.",
        "Charles Dickens",
    ),
    _general(
        "How many protons does an atom of lithium have?",
        "The atomic number of lithium is 3, so each of its atoms has 3 protons. It is a light metal found in"
        " batteries.",
        "Three: lithium's atomic number, and hence the number of protons in each of its atoms. Batteries"
        " contain this light metal.",
        "3",
    ),
    _general(
        "How do zoologists class the goose?",
        "Zoologists count the goose among the birds. It feeds mostly on grass, and its young is called a"
        " gosling.",
        "The goose is a bird to zoologists. Its main food is grass, and a gosling is what its young is"
        " called.",
        "birds",
    ),
    _general(
        "Name the year in which the Second World War ended.",
        "It was in 1945 that the Second World War ended. The United Nations were founded soon after it.",
        "The Second World War came to its end in 1945, and the founding of the United Nations followed soon.",
        "1945",
    ),
    _general(
        "Give the boiling point of water in Celsius.",
        "At sea level water boils at 100 degrees Celsius. On high mountains, where the air is thinner, it"
        " boils at less.",
        "Water at sea level starts to boil at 100 °C. The thinner air of high mountains makes it boil at a"
        " lower temperature.",
        "100",
    ),
    _general(
        "Which organ pumps blood?",
        "Blood is pumped by the heart, a muscle with four chambers. It beats about 70 times a minute at"
        " rest.",
        "The heart pumps it. This muscle has four chambers and makes about 70 beats a minute when the body"
        " rests.",
        "heart",
    ),
    _general(
        "Which language came to Brazil with its colonists?",
        "The official language of Brazil is Portuguese. It came with the colonists from Portugal in the"
        " sixteenth century.",
        "Portuguese, which colonists from Portugal brought in the 16th century and which is Brazil's official"
        " language.",
        "Portuguese",
    ),
)

_MATH = (
    _math(
        "A rectangular field is 5 m long and 9 m wide. How long is a fence around it, in metres?",
        "One length and one width make 5 + 9 = 14 m. The fence runs along each twice: 2 x 14 = 28 m. The"
        " answer is 28.",
        "Length plus width is 5 + 9 = 14 metres, and the fence needs both of them two times, which is"
        " 2 x 14 = 28 metres. The answer is 28.",
        "28",
    ),
    _math(
        "A set of caps costs 80 euros. In the sale it is 10 percent cheaper. What is the sale price?",
        "The discount is 10 percent of 80, which is 8 euros. The sale price is 80 - 8 = 72 euros. The answer"
        " is 72.",
        "The caps cost 72 euros in the sale, since 10 percent of 80 euros, that is 8 euros, are taken off.",
        "72",
    ),
    _math(
        "Ravi shares 56 candles equally among 8 children. How many does every child get?",
        "There are 56 candles for 8 children. We divide to find each share: 56 / 8 = 7 candles. The answer"
        " is 7.",
        "To share 56 candles among 8 children, divide: 56 ÷ 8 = 7. Every child gets 7 candles.",
        "7",
    ),
    _math(
        "In three rounds of golf Elif scores 8, 20 and 11 points. What is the average per round?",
        "The three rounds give 8 + 20 + 11 = 39 points. Divided by three rounds the average is 39 / 3 = 13."
        " The answer is 13.",
        "Elif has 8 + 20 + 11 = 39 points in all. Over three rounds this averages 39 / 3 = 13 points.",
        "13",
    ),
    _math(
        "Nils buys 5 lamps at 3 euros apiece and pays with 50 euros. How much change is due?",
        "The lamps cost 5 x 3 = 15 euros. The change is 50 - 15 = 35 euros. The answer is 35.",
        "Five lamps at 3 euros each come to 15 euros. From 50 euros that leaves 35 euros. So the answer is"
        " 35 euros of change.",
        "35",
    ),
    _math(
        "Half of the 18 candles that Carlos owns go to Mina, and 8 more get lost. What number remains?",
        "Half of 18 is 9, so Carlos keeps 9 candles. After 8 get lost, 9 - 8 = 1 remain. The answer is 1.",
        "Carlos gives away half of his 18 candles and has 9 left. He loses 8 of these, so that only one"
        " remains.",
        "1",
    ),
    _math(
        "29 people ride in a tram. At the next stop 3 get off and 13 get on. How many ride on?",
        "When 3 people get off, 29 - 3 = 26 stay in the tram. Then 13 get on, which makes 26 + 13 = 39. The"
        " answer is 39.",
        "1. Of 29 people, 3 leave: 29 - 3 = 26.\n2. 13 people join them: 26 + 13 = 39.\n\n**Answer: 39**",
        "39",
    ),
    _math(
        "Pia measures a rectangular terrace: 6 m by 7 m. What is its area in square metres?",
        "The area of a rectangle is its length times its width. For this terrace that is 6 x 7 = 42 square"
        " metres. The answer is 42.",
        "Multiply the length of a rectangle by its width and you have its area: 6 m x 7 m = 42 m². The"
        " answer is 42 square metres.",
        "42",
    ),
)

_MEDICINE = (
    _medicine(
        "How often should I brush?",
        "Brush your teeth twice a day for two minutes with a fluoride toothpaste, and clean between them"
        " daily. A visit to the dentist each year finds trouble before it hurts.",
        "Use a toothpaste with fluoride and brush two times daily, two minutes each; clean the gaps between"
        " your teeth every day. Seen by a dentist once a year, trouble is found before it is painful.",
        "twice a day",
        "fluoride",
    ),
    _medicine(
        "I worry about the need for sleep. Can you help?",
        "Most adults need seven to nine hours of sleep a night, and children need more. If you feel tired all"
        " day in spite of long nights, it is wise to talk to a doctor.",
        "Seven to nine hours a night are what most adults need, and children even more. It is sensible to"
        " speak with a doctor if your nights are long and you are still tired all day.",
        "seven to nine hours",
    ),
    _medicine(
        "Which foods or other sources give me vitamin C?",
        "Good sources of vitamin C are citrus fruit, peppers and berries. It helps wounds to heal and the gut"
        " to take up iron. If you are worried about your diet, a doctor or dietitian can advise you.",
        "Berries, peppers and citrus fruit supply you well with vitamin C, which supports the healing of"
        " wounds and the uptake of iron in the gut. With worries about your diet, ask a doctor or dietitian"
        " for advice.",
        "citrus",
    ),
    _medicine(
        "How should scalded skin be cooled?",
        "Please hold the burn under cool running water for 20 minutes and take off rings early. Cover it"
        " loosely, and use no ice or butter. A large, deep or blistered burn should be seen by a doctor.",
        "Let cool water run over the burn for twenty minutes, removing rings early. A loose cover is right;"
        " ice and butter are not. Have a doctor look at any burn that is large, deep or blistered.",
        "running water",
        "20 minutes",
    ),
    _medicine(
        "What are warning signs of concussion?",
        "Rest, cool the bump and let someone stay with you for a day. Vomiting, confusion, a growing headache"
        " or great sleepiness are warning signs, and you should then go to hospital at once.",
        "Go to hospital immediately on these warning signs: vomiting, confusion, a headache that grows, or"
        " great sleepiness. Otherwise rest, keep the bump cool and have somebody with you for one day.",
        "Vomiting",
        "confusion",
    ),
    _medicine(
        "Please advise me on a common cold.",
        "A cold is caused by viruses, so antibiotic pills do not help. Rest, drink enough and give it time:"
        " it mostly passes within seven to ten days. See a doctor if breathing becomes hard.",
        "Antibiotic pills are useless against a cold, as a virus causes it. Be patient, rest and drink"
        " enough; after seven to ten days at most it is usually over. If you find it hard to breathe, see a"
        " doctor.",
        "viruses",
        "ten days",
    ),
    _medicine(
        "What matters most with an asthma attack?",
        "Help the person to sit upright, stay calm and use the blue reliever inhaler as prescribed. If it"
        " does not get better within minutes, or speaking is hard, please call an ambulance.",
        "Have the person sit up straight, keep calm and take the blue reliever inhaler as prescribed. Please"
        " call an ambulance when minutes pass without improvement or when talking is difficult.",
        "upright",
        "inhaler",
    ),
    _medicine(
        "How much fruit should I eat?",
        "Try to eat at least five portions a day, or about 400 grams in all. They bring vitamins and fibre,"
        " and people who eat more of them have less heart disease on average.",
        "Five or more portions a day, some 400 grams altogether, are a good aim. Fibre and vitamins come with"
        " them, and on average heart disease is rarer among people who eat more of them.",
        "five portions",
        "400 grams",
    ),
)
