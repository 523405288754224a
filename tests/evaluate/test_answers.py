"""Claims about the parsers of answers: what a text states is read, what it does not state is not guessed."""

import time

import pytest

from scratchlm.evaluate.answers import marked_number, parse_gsm8k_response, parse_mmlu_response, same_number

FOUR = {"choices": ["a frog", "a toad", "a newt", "an axolotl"]}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Natalia sold 48/2 = 24 clips in May, 48+24 = 72 in all.", "72"),
        ("Natalia sold twenty-four clips.", None),
        ("", None),
        ("It costs $1,234.50", "1234.50"),
        ("$ 1,234,567.", "1234567"),
        ("it fell to -5 degrees", "-5"),
        ("it fell to \u2212 5", "-5"),
        ("16-3", "3"),
        ("(4)-3", "3"),
        ("-$5", "-5"),
        ("first 1,2,3", "3"),
        ("1234,567", "567"),
        ("half is .5", "0.5"),
        ("version 1.2.3", "3"),
        ("3.", "3"),
        ("50%", "50"),
        ("18 dollars (eighteen).", "18"),
    ],
)
def test_last_number_is_read(text, number):
    assert parse_gsm8k_response(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 2 = 4\n#### 4\n\nQuestion: what is 7?", "4"),
        ("#### -1,000", "-1000"),
        ("####$5.50", "5.50"),
        ("#### \n7", None),
        ("#### about 7", None),
        ("The answer is 4.", None),
        ("#### 1\n#### 2", "1"),
    ],
)
def test_marked_number_stands_behind_the_first_mark_on_its_line(text, number):
    assert marked_number(text) == number


def test_numbers_are_equal_however_written():
    assert same_number("18.00", "18")
    assert same_number("1,000", "1000.0")
    assert same_number("007", "7")
    assert not same_number("18.01", "18")
    assert not same_number(None, "18")
    assert not same_number("no idea", "18")
    with pytest.raises(ValueError, match="expected answer 'none': is no number"):
        same_number("1", "none")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is B. There are many.", "B"),
        ("The correct answer is 10000 polyomaviruses.", None),
        ("Answer: C", "C"),
        ("**Answer:** (C)", "C"),
        ("The answer is option D, since A and B are wrong.", "D"),
        ("The answer is A? No: the answer is B.", "B"),
        ("B", "B"),
        (" (C) a newt", "C"),
        ("D. An axolotl", "D"),
        ("B: a toad", "B"),
        ("A toad, I think.", None),
        ("A or B", None),
        ("The answer is A because frogs croak.", "A"),
        ("The answer is B cells", "B"),
        ("I think so", None),
        ("A, B, C, D", None),
        ("It must be C", "C"),
        ("a Toad.", "B"),
        ("the answer is a frog", None),
        ("The answer is A frog", None),
        ("B-cells, C-fibres", None),
        ("Plan B's flaw", None),
        ("E", None),
        ("The answer is E", None),
        ("", None),
    ],
)
def test_letter_is_read_and_never_guessed(text, letter):
    assert parse_mmlu_response(FOUR, text) == letter


def test_choices_say_which_letters_there_are():
    assert parse_mmlu_response({"options": list("vwxyz")}, "The answer is E") == "E"
    assert parse_mmlu_response({"choices": ["no", "yes"]}, "The answer is C") is None
    assert parse_mmlu_response({}, "The answer is D") == "D"


@pytest.mark.parametrize(
    "part", ["-", "1,", "1", "answer ", "answer is ", "* ", "A ", "(", "$", ".", "#### ", " "]
)
def test_hostile_text_takes_time_in_proportion(part):
    started = time.process_time()
    for text in (part * 50_000, part * 50_000 + "x"):
        parse_gsm8k_response(text), marked_number(text), parse_mmlu_response(FOUR, text)
    assert time.process_time() - started < 20  # a square of 50,000 would take minutes
