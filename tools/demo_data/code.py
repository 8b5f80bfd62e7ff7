"""Code: a request for a short Python function, answered by nothing but the function."""

import random

from fedsdr.data.examples import Example
from tools.demo_data.code_filters import Function, filters

_FRAMES = (
    "Write a Python function {call} that {does}.",
    "Implement {call} in Python. It {does}.",
    "Please code this for me: {call} {does}.",
    "def {call}: fill in the body so that it {does}",
    "My script lacks a helper, {call}, which {does}. Give its source.",
)


def examples(rng: random.Random) -> list[Example]:
    """Ask for every function in both descriptions and several frames, in random order."""
    drawn = []
    for function, num_frames in [(f, 4) for f in _functions()] + [(f, 2) for f in filters()]:
        frames = rng.sample(_FRAMES, num_frames)
        for i, frame in enumerate(frames):
            drawn.append(_as_example(function, frame.format(call=function.call, does=function.does[i % 2])))
    rng.shuffle(drawn)
    return drawn


def _as_example(function: Function, instruction: str) -> Example:
    name = function.call.partition("(")[0]
    return Example(
        instruction=instruction,
        response=f"def {function.call}:\n{function.body}",
        domain="code",
        tests="\n".join(f"assert {name}{test}" for test in function.tests),
    )


def _functions() -> list[Function]:
    """Read the table at the end of this file."""
    functions = []
    for block in _FUNCTIONS.strip().split("\n\n"):
        head, *body, tests = block.split("\n")
        call, *does = head.split(" | ")
        functions.append(Function(call, tuple(does), "\n".join(body), tuple(tests.split("; "))))
    return functions


# Each block: the call and two descriptions, the body, and what holds of calls with these arguments.
_FUNCTIONS = """
factorial(n) | computes the factorial of n | multiplies all whole numbers from 1 up to n
    # The empty product is 1.
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result
(0) == 1; (5) == 120

is_prime(n) | tells whether n is a prime number | checks that n has no divisor besides 1 and itself
    # A divisor above the square root has a partner below it.
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
(1) is False; (13) is True; (49) is False

fibonacci(n) | gives the first n Fibonacci numbers | lists n terms, each the sum of the two before it
    # The sequence begins with 0 and 1.
    terms, a, b = [], 0, 1
    for _ in range(n):
        terms.append(a)
        a, b = b, a + b
    return terms
(0) == []; (6) == [0, 1, 1, 2, 3, 5]

gcd(a, b) | finds the greatest common divisor of a and b | applies Euclid's algorithm to two integers
    # Replace the pair until the rest is zero.
    while b:
        a, b = b, a % b
    return a
(12, 18) == 6; (7, 5) == 1

digit_sum(n) | adds the digits of a non-negative integer | sums up each decimal digit of n
    # Read the digits from the written number.
    return sum(int(digit) for digit in str(n))
(0) == 0; (493) == 16

reverse_text(text) | returns the text backwards | flips the order of the characters in a string
    # A step of -1 walks from the end to the start.
    return text[::-1]
('abc') == 'cba'; ('') == ''

count_vowels(text) | counts the vowels in a string | says how often a, e, i, o or u occur in text
    # Upper and lower case count alike.
    return sum(1 for letter in text.lower() if letter in 'aeiou')
('Education') == 5; ('rhythm') == 0

is_leap_year(year) | tells whether a year has 366 days | checks the Gregorian rule for leap years
    # Full centuries are leap years only every 400 years.
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
(2024) is True; (1900) is False; (2000) is True

unique(items) | drops repeated items but keeps the order | lists each item once, as first seen
    # A dictionary holds every key once, in order of arrival.
    return list(dict.fromkeys(items))
([3, 1, 3, 2, 1]) == [3, 1, 2]; ([]) == []

flatten(lists) | joins a list of lists into one list | lists all items of the inner lists
    # Go through the inner lists in order.
    return [item for inner in lists for item in inner]
([[1, 2], [], [3]]) == [1, 2, 3]; ([]) == []

mean(numbers) | computes the average of a list | divides the sum of the numbers by their count
    # The list must not be empty.
    total = sum(numbers)
    return total / len(numbers)
([2, 4, 9]) == 5; ([7]) == 7

median(numbers) | finds the middle value of an odd-length list | sorts numbers and takes the central one
    # The length is odd, so one value is in the middle.
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]
([9, 1, 5]) == 5; ([2]) == 2

word_counts(text) | counts how often every word occurs | maps each word of a text to its frequency
    # Words are separated by white space.
    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts
('a b a') == {'a': 2, 'b': 1}; ('') == {}

is_palindrome(text) | tells whether a text reads the same backwards | compares a string with its mirror
    # Ignore case, as in 'Anna'.
    text = text.lower()
    return text == text[::-1]
('Anna') is True; ('Bob!') is False

second_largest(numbers) | finds the second largest distinct value | gives the runner-up among values
    # A set removes ties for the first place.
    ordered = sorted(set(numbers))
    return ordered[-2]
([4, 9, 9, 7]) == 7; ([1, 2]) == 1

celsius_to_fahrenheit(c) | converts a temperature to Fahrenheit | turns degrees Celsius into Fahrenheit
    # Water freezes at 32 and boils at 212 degrees.
    return c * 9 / 5 + 32
(0) == 32; (100) == 212

clamp(x, low, high) | limits x to the range from low to high | pushes a value back inside two bounds
    # First the lower bound, then the upper one.
    return min(max(x, low), high)
(5, 0, 3) == 3; (-1, 0, 3) == 0; (2, 0, 3) == 2

fizzbuzz(n) | plays the FizzBuzz game for one number | says Fizz for 3, Buzz for 5, both for 15, else n
    # Both words are said for multiples of 15.
    word = 'Fizz' * (n % 3 == 0) + 'Buzz' * (n % 5 == 0)
    return word or str(n)
(9) == 'Fizz'; (10) == 'Buzz'; (30) == 'FizzBuzz'; (7) == '7'

merge(a, b) | merges two sorted lists into one | combines ordered lists and keeps them ordered
    # Sorting the joined lists keeps the order right.
    return sorted(a + b)
([1, 4], [2, 3]) == [1, 2, 3, 4]; ([], [5]) == [5]

chunks(items, size) | cuts a list into pieces of a given size | groups items; the last group may be short
    # Step through the list from one start to the next.
    return [items[i : i + size] for i in range(0, len(items), size)]
([1, 2, 3], 2) == [[1, 2], [3]]; ([], 4) == []

rotate(items, k) | moves the first k items to the end | rotates a list to the left by k places
    # Cut the list in two and swap the parts.
    return items[k:] + items[:k]
([1, 2, 3, 4], 1) == [2, 3, 4, 1]; ([5, 6], 0) == [5, 6]

transpose(rows) | swaps the rows and columns of a matrix | turns a table on its side
    # The star hands every row to zip.
    return [list(column) for column in zip(*rows)]
([[1, 2], [3, 4]]) == [[1, 3], [2, 4]]; ([[1, 2, 3]]) == [[1], [2], [3]]

invert(mapping) | swaps keys and values of a dictionary | makes a dict that leads from value to key
    # Values must differ, or the last one wins.
    return {value: key for key, value in mapping.items()}
({'a': 1, 'b': 2}) == {1: 'a', 2: 'b'}; ({}) == {}

initials(name) | returns the first letters of a full name | abbreviates a person's name, as in A.L.
    # Each part of the name gives one letter and a full stop.
    return ''.join(part[0].upper() + '.' for part in name.split())
('ada lovelace') == 'A.L.'; ('Bo') == 'B.'

is_anagram(a, b) | tells whether two words use the same letters | checks if b is a rearrangement of a
    # Equal letters become equal lists once sorted.
    return sorted(a) == sorted(b)
('listen', 'silent') is True; ('cat', 'car') is False

to_binary(n) | writes a non-negative integer in base two | converts a number into a string of bits
    # The prefix 0b that Python writes is cut off.
    digits = bin(n)
    return digits[2:]
(5) == '101'; (0) == '0'

squares(n) | lists the squares of 1 to n | returns 1, 4, 9 and so on, n values in all
    # The end of a range is not included.
    return [i * i for i in range(1, n + 1)]
(4) == [1, 4, 9, 16]; (0) == []

divisors(n) | lists all divisors of n in order | returns every positive integer that divides n
    # Try each number up to n itself.
    return [d for d in range(1, n + 1) if n % d == 0]
(12) == [1, 2, 3, 4, 6, 12]; (1) == [1]

remove_spaces(text) | deletes every blank from a string | returns the text with no space left in it
    # Replace each space by nothing at all.
    blank = ' '
    return text.replace(blank, '')
(' a b ') == 'ab'; ('') == ''

title_case(text) | starts each word with a capital letter | capitalises all the words of a sentence
    # Split, change each word, and join again.
    return ' '.join(word.capitalize() for word in text.split())
('hello big world') == 'Hello Big World'; ('') == ''

longest_word(text) | finds the longest word of a text | returns whichever word has most letters
    # Of words of equal length the first is taken.
    words = text.split()
    return max(words, key=len)
('a tiny elephant ran') == 'elephant'; ('ab cd') == 'ab'

cumulative(numbers) | returns the running totals of a list | replaces each number by the sum so far
    # Carry the total from one number to the next.
    totals, total = [], 0
    for n in numbers:
        total += n
        totals.append(total)
    return totals
([1, 2, 3]) == [1, 3, 6]; ([]) == []

common(a, b) | lists the items of a that are also in b | finds what two lists share
    # Sets answer quickly whether an item is in them.
    known = set(b)
    return [item for item in a if item in known]
([1, 2, 3], [3, 1]) == [1, 3]; ([], [1]) == []

minutes_to_clock(m) | writes minutes after midnight as HH:MM | formats a count of minutes as clock time
    # An hour has 60 minutes; both parts get two digits.
    return f'{m // 60:02d}:{m % 60:02d}'
(75) == '01:15'; (0) == '00:00'

swap_ends(items) | exchanges the first and last item of a list | trades places of both ends of a list
    # Work on a copy, so that the input stays as it is.
    result = list(items)
    result[0], result[-1] = result[-1], result[0]
    return result
([1, 2, 3]) == [3, 2, 1]; ([4, 5]) == [5, 4]

power(base, exponent) | raises base to a whole exponent | multiplies base by itself, exponent times
    # Anything to the power 0 is 1.
    result = 1
    for _ in range(exponent):
        result *= base
    return result
(2, 10) == 1024; (7, 0) == 1
"""
