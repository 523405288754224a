r"""A model's words come in, the answer that they state comes out: a number, a letter, or None.

    "48 / 2 = 24 in May, 48 + 24 = 72 in all."    -> "72"     parse_gsm8k_response: the last number
    "... makes 9 * 2 = $18 a day.\n#### 18"       -> "18"     marked_number: what stands behind "####"
    "The correct answer is B."                    -> "B"      parse_mmlu_response: the letter of a choice
    "twenty-four clips"                           -> None     nothing that can be read

A parser never guesses: where two choices are named and nothing says which one is meant, there is no answer.
One answer is read from a text, whatever else is in it, so naming several wins nothing. All patterns take time
in proportion to the text: what a model writes cannot keep them busy.

Source: the form of the answers: Cobbe et al. 2021 (GSM8K), https://arxiv.org/abs/2110.14168, and Hendrycks
et al. 2021 (MMLU), https://arxiv.org/abs/2009.03300. The rules of reading are our own.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

LETTERS = "ABCDEFGHIJ"
"""Names of choices, in order; no task that we know has more than ten."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+"
# a minus between two figures or behind a word is no sign: "16-3", "well-4"
_NUMBER = re.compile(rf"(?:(?<![\w)\].%])[-\u2212] ?)?\$? ?(?:{_DIGITS})")
_MARKED = re.compile(rf"####[^\S\n]*([-\u2212]?[^\S\n]?\$?[^\S\n]?(?:{_DIGITS}))")

# a letter by itself, perhaps in brackets or stars: B, (B), **B**; not the B of "B-cell" or "vitamin's"
_CHOICE = r"[(\[*]{0,3}\b([A-J])\b(?!['\u2019-]\w)"
# "A frog" and "I think" name no choice; "A or B" and "A because" do
_LETTER = rf"{_CHOICE}(?<![AI](?= (?!(?:and|as|because|but|for|is|or|since)\b)[a-z]))"
_STATED = re.compile(
    rf"\b(?:[Aa]nswer|ANSWER)s?(?: choice| option)?(?:[ :*]|\b[Ii]s\b|\bwould be\b|\bmust be\b|\b[Oo]ption\b"
    rf"|\b[Cc]hoice\b){{1,12}}{_LETTER}"
)
_ALONE = re.compile(rf"\s*{_LETTER}[)\].*]{{0,3}}(?=\s*$|\s*[.:;)\n]|[)\].:*])")
_NAMED = re.compile(_LETTER)


def parse_gsm8k_response(model_output: str) -> str | None:
    """Return the last number of a text without commas and currency signs, None if there is no number.

    Example: "48+24 = 72 clips." -> "72"; "It costs $1,234.50" -> "1234.50"; "it fell to -5" -> "-5".
    """
    numbers = _NUMBER.findall(model_output)
    return _plain(numbers[-1]) if numbers else None


def marked_number(model_output: str) -> str | None:
    r"""Return the number behind the first "####", where GSM8K's solutions have it, None if there is none.

    Example: "2 + 2 = 4\n#### 4\n\nQuestion: 7" -> "4"; "The answer is 4." -> None.
    """
    found = _MARKED.search(model_output)
    return None if found is None else _plain(found[1])


def same_text(one: str, other: str) -> bool:
    """Whether two texts are equal but for upper or lower case, blanks around them and a final period."""
    return _bare(one) == _bare(other)


def same_number(answer: str | None, expected: str) -> bool:
    """Whether two numbers are equal, however they are written.

    Example: "18.00" and "18" -> True; None and "18" -> False.

    Raises:
        ValueError: `expected` is no number.
    """
    wanted = parse_gsm8k_response(expected)
    if wanted is None:
        raise ValueError(f"expected answer {expected[:40]!r}: is no number.")
    given = None if answer is None else parse_gsm8k_response(answer)
    return given is not None and Decimal(given) == Decimal(wanted)


def parse_mmlu_response(mmlu_example: Mapping[str, Any], model_output: str) -> str | None:
    """Return the letter of the choice that a text names, None where it names none or is undecided.

    The last "answer is B" counts; else a letter with which the text begins ("B. Because ..."); else a text
    that is word for word one of the choices; else the only letter that stands by itself.

    Args:
        mmlu_example: The question; the length of "choices" (or "options") says which letters there are, four
            where it has neither.
        model_output: What the model wrote.

    Example: "The correct answer is B." -> "B"; "(C)" -> "C"; "A or B" -> None.
    """
    choices: Sequence[Any] = mmlu_example.get("choices") or mmlu_example.get("options") or LETTERS[:4]
    letters = LETTERS[: len(choices)]
    stated = [letter for letter in _STATED.findall(model_output) if letter in letters]
    if stated:
        return stated[-1]
    begins = _ALONE.match(model_output)
    if begins is not None and begins[1] in letters:
        return begins[1]
    said = _bare(model_output)
    same = [letter for letter, choice in zip(letters, choices, strict=True) if _bare(str(choice)) == said]
    if len(same) == 1:
        return same[0]
    named = {letter for letter in _NAMED.findall(model_output) if letter in letters}
    return named.pop() if len(named) == 1 else None


def _plain(number: str) -> str:
    """Leave out what is no figure: "$1,234" -> "1234", "- 5" -> "-5", ".5" -> "0.5"."""
    digits = re.sub(r"[^0-9.]", "", number)
    sign = "-" if number[0] in "-\u2212" else ""
    return sign + ("0" + digits if digits.startswith(".") else digits)


def _bare(text: str) -> str:
    return text.strip().rstrip(".").casefold()
