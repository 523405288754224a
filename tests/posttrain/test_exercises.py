"""Exercises: the same again by seed and index, held out by what they ask, no way around their checkers."""

import itertools
import random
import re

import pytest

from scratchlm.data.stories import check_consistency
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.arithmetic import Arithmetic, thought
from scratchlm.posttrain.tasks.exercise import HELD_OUT, Exercise, read_tagged, side
from scratchlm.posttrain.tasks.story_instructions import StoryInstructions
from scratchlm.posttrain.tasks.story_openings import StoryOpenings
from scratchlm.posttrain.tasks.story_questions import StoryQuestions, sentence_about
from scratchlm.posttrain.tasks.story_rules import DEEDS, QUESTIONS, THREADS

NAMES = ("arithmetic", "story_instructions", "story_openings", "story_questions")
TAGS = {"form": "tags", "thoughts": 0.5}
CHOSEN = [*((name, {}) for name in NAMES), ("arithmetic", TAGS), ("story_questions", TAGS)]


@pytest.fixture(scope="module", params=CHOSEN, ids=lambda chosen: "-".join([chosen[0], *chosen[1]]))
def exercise(request) -> Exercise:
    name, settings = request.param
    return EXERCISES.build(name, **settings)


@pytest.fixture(scope="module")
def problems(exercise):
    return exercise.problems(7, "train", 0, 60)


def test_all_exercises_are_found_by_name():
    assert EXERCISES.names() == sorted([*NAMES, "from_data"])


def test_a_problem_is_a_function_of_seed_split_and_index(exercise, problems):
    assert exercise.problems(7, "train", 0, 60) == problems
    assert exercise.problem(7, "train", 31) == problems[31]
    for other in (exercise.problems(8, "train", 0, 60), exercise.problems(7, "valid", 0, 60)):
        assert other != problems


def test_a_worked_response_is_right_and_another_problem_s_is_not(exercise, problems):
    for problem, other in itertools.pairwise(problems):
        assert exercise.check(problem.response, problem.answer) == (True, True)
        if other.answer != problem.answer:
            assert not exercise.check(other.response, problem.answer).correct


def test_training_and_held_out_problems_never_meet_whatever_the_seed(exercise):
    sides = {}
    for split in ("train", "valid"):
        for seed in range(3):
            for problem in exercise.problems(seed, split, 0, 40):
                sides.setdefault(problem.prompt, set()).add(split)
    assert all(len(found) == 1 for found in sides.values())


def test_one_in_five_is_held_out():
    share = sum(side(f"key {i}") == "valid" for i in range(5_000)) / 5_000
    assert share == pytest.approx(1 / HELD_OUT, abs=0.02)


@pytest.mark.parametrize("index", range(3))
def test_no_text_that_is_not_the_response_is_right(exercise, problems, index):
    problem = problems[index]
    right = problem.response
    wrong = [
        "",
        " ",
        "\n",
        problem.answer[:-2],
        f"{right}\n{right}",
        f"{right} {problem.answer}",
        f"{problem.answer} or {problem.answer}",
        f"The answer is {problem.answer}",
        f"{problem.prompt}\n{right}",
        f"<answer>{problem.answer}</answer>{right}",
        f"<answer><answer>{problem.answer}</answer></answer>",
        f"<think></think><think></think><answer>{problem.answer}</answer>",
        right + "\x00",
        right.replace("a", "\u0430") if "a" in right else "\u0430",
        " ".join(str(i) for i in range(200)),
        right * 50,
        "<answer>" * 2_000,
    ]
    for text in wrong:
        assert not exercise.check(text, problem.answer).correct, text[:200]


def test_a_checker_judges_any_text(exercise, problems):
    generator = random.Random(0)
    letters = '<>/answerthink 0123456789-+=.,"\n\t\ud800\u0663'
    for _ in range(300):
        text = "".join(generator.choices(letters, k=generator.randrange(80)))
        assert not exercise.check(text, problems[0].answer).correct


class TestArithmetic:
    def test_thoughts_are_the_schoolbook_s_columns(self):
        assert thought(27, 48, "+") == "7 + 8 = 15, 1 + 2 + 4 = 7"
        assert thought(95, 8, "+") == "5 + 8 = 13, 1 + 9 + 0 = 10"
        assert thought(52, 38, "-") == "12 - 8 = 4, 4 - 3 = 1"
        assert thought(0, 0, "+") == "0 + 0 = 0"
        assert thought(100, 1, "-") == "10 - 1 = 9, 9 - 0 = 9, 0 - 0 = 0"

    def test_every_step_of_a_thought_is_true_and_its_last_digits_make_the_answer(self):
        for problem in Arithmetic(digits=4).problems(1, "train", 0, 200):
            steps = re.search("<think>(.*)</think>", problem.response)[1].split(", ")
            results = []
            for left, right in (step.split(" = ") for step in steps):
                terms = [int(term) for term in re.findall(r"\d+", left)]
                assert int(right) == (terms[0] - terms[1] if "-" in left else sum(terms))
                results.append(right)
            first = results[-1] + "".join(result[-1] for result in reversed(results[:-1]))
            assert int(first) == int(problem.answer)

    @pytest.mark.parametrize(
        "text",
        ["075", "+75", "75.0", "7 5", "\u0667\u0665", "75 ", "-75", "75,", "75</answer><answer>75"],
    )
    def test_only_the_usual_digits_are_a_number(self, text):
        exercise = Arithmetic()
        tagged = exercise.check(f"<answer>{text}</answer>", "75")
        assert tagged.correct == (text.strip() == "75")

    def test_the_bare_number_has_no_tags(self):
        exercise = Arithmetic(form="number")
        assert exercise.problem(1, "train", 0).response == exercise.problem(1, "train", 0).answer
        assert exercise.check(" 75\n", "75").correct
        assert not exercise.check("<answer>75</answer>", "75").formatted

    def test_a_sum_is_held_out_in_both_orders(self):
        keys = {}
        for seed in range(400):
            problem, key = Arithmetic(digits=1).draw(random.Random(seed))
            a, sign, b = re.search(r"(\d+) ([+-]) (\d+)", problem.prompt).groups()
            keys.setdefault((sign, *sorted([a, b])), set()).add(key)
        assert all(len(found) == 1 for found in keys.values())

    @pytest.mark.parametrize("settings", [{"digits": 0}, {"digits": 10}])
    def test_sizes_that_are_not_allowed_are_refused(self, settings):
        with pytest.raises(ValueError, match=r"exercise\.digits=.*choose 1 to 9"):
            Arithmetic(**settings)

    @pytest.mark.parametrize("operations", ["", "*", "+*"])
    def test_other_operations_are_refused(self, operations):
        with pytest.raises(ValueError, match=r"exercise\.operations="):
            Arithmetic(operations=operations)


class TestTags:
    @pytest.mark.parametrize("thought", ["", "<think>any\nthing</think>", "<think></think> \n "])
    def test_a_thought_may_stand_before_the_one_answer(self, thought):
        assert read_tagged(f" {thought}<answer> 75 </answer>\n") == "75"

    @pytest.mark.parametrize(
        "text",
        [
            "75",
            "<answer>75",
            "<answer>75</answer>.",
            "x<answer>75</answer>",
            "<answer>75</answer><think></think>",
            "<think><answer>74</answer></think><answer>75</answer>",
            "<think>a</think>b<answer>75</answer>",
            "<answer>74</answer><answer>75</answer>",
            "<answer>74<answer>75</answer>",
            "<ANSWER>75</ANSWER>",
        ],
    )
    def test_everything_else_has_no_answer(self, text):
        assert read_tagged(text) is None


@pytest.mark.parametrize("name", ["arithmetic", "story_questions"])
class TestThoughts:
    def test_a_share_of_the_demonstrations_thinks_first(self, name):
        problems = EXERCISES.build(name, **TAGS).problems(1, "train", 0, 400)
        thinks = ["<think>" in problem.response for problem in problems]
        assert 0.42 < sum(thinks) / len(thinks) < 0.58

    def test_the_share_changes_no_question_and_no_answer(self, name):
        made = [
            EXERCISES.build(name, form="tags", thoughts=share).problems(1, "train", 0, 50)
            for share in (0.0, 0.5, 1.0)
        ]
        for never, sometimes, always in zip(*made, strict=True):
            assert never[::2] == sometimes[::2] == always[::2]
            assert never.response == f"<answer>{never.answer}</answer>"
            assert always.response.startswith("<think>")
            assert always.response.endswith(never.response)
            assert sometimes.response in (never.response, always.response)

    @pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
    def test_other_shares_are_refused(self, name, share):
        with pytest.raises(ValueError, match=r"thoughts=(nan: must be a finite number|.*choose 0 to 1)"):
            EXERCISES.build(name, form="tags", thoughts=share)

    def test_what_a_thought_says_does_not_matter(self, name):
        exercise = EXERCISES.build(name, form="tags")
        problem = exercise.problem(1, "train", 0)
        said = f"<answer>{problem.answer}</answer>"
        assert exercise.check(f"<think>nonsense</think>{said}", problem.answer).correct
        assert not exercise.check(
            f"<think>{problem.answer}</think><answer>x</answer>", problem.answer
        ).correct
        assert not exercise.check(problem.answer, problem.answer).formatted


class TestStoryQuestions:
    def test_a_thought_is_the_sentence_in_which_the_answer_stands(self):
        for problem in StoryQuestions(form="tags").problems(3, "train", 0, 200):
            story, _ = problem.prompt.split("\n")
            thought = re.search("<think>(.*)</think>", problem.response)[1]
            assert thought in story, problem
            assert len(thought) < len(story), problem
            assert set(problem.answer.split()[-1:]) <= set(re.findall(r"\w+", thought)), problem

    @pytest.mark.parametrize(
        ("question", "answer", "sentence"),
        [
            ("What did Sam break?", "the jar", "One day, Mrs. Bell's jar fell, because Sam ran."),
            ("Who is like the fox?", "Sam", "Sam was a fox."),
            ("Where are the pieces?", "under the bed", '"Oh!" he said, and hid the pieces under the bed.'),
        ],
    )
    def test_sentences_end_behind_no_title_and_articles_are_no_answer(self, question, answer, sentence):
        story = (
            "Sam was a fox. One day, Mrs. Bell's jar fell, because Sam ran. "
            '"Oh!" he said, and hid the pieces under the bed.'
        )
        assert sentence_about(story, question, answer) == sentence

    def test_the_answer_stands_in_the_story(self):
        for problem in StoryQuestions().problems(3, "train", 0, 200):
            story, _ = problem.prompt.split("\n")
            said = problem.answer
            for beginning in ("the ", "it was ", "a ", "an ", "some "):
                said = said.removeprefix(beginning)
            assert said in story, problem

    def test_every_question_comes_up(self):
        templates = [question.split("\t")[0] for found in QUESTIONS.values() for question in found]
        asked = {re.sub(r"\{.*?\}", ".+", template.replace("?", r"\?")) for template in templates}
        said = [problem.prompt.split("\n")[1] for problem in StoryQuestions().problems(4, "train", 0, 800)]
        assert {form for form in asked if any(re.fullmatch(form, text) for text in said)} == asked

    def test_case_blanks_and_a_period_do_not_matter(self):
        check = StoryQuestions().check
        assert check(" Under the bed.\n", "under the bed").correct
        for text in ("under the bed..", "under the bed, on the shelf", "the bed", "under  the bed", "bed"):
            assert not check(text, "under the bed").correct

    def test_a_copy_of_the_story_has_not_the_form_of_an_answer(self):
        problem = StoryQuestions().problem(1, "train", 0)
        assert not StoryQuestions().check(problem.prompt.split("\n")[0], problem.answer).formatted


@pytest.fixture(scope="module")
def stories():
    return StoryInstructions().problems(5, "train", 0, 40)


class TestStoryInstructions:
    def test_every_plot_can_be_asked_for(self):
        assert set(DEEDS) == set(THREADS)
        wanted = [problem.answer for problem in StoryInstructions().problems(5, "valid", 0, 150)]
        asked = {wish.partition(" who ")[2].split()[0] for wish in wanted}
        assert asked == {deed.split()[1] for deed in DEEDS.values()}

    def test_any_consistent_story_about_it_is_right(self, stories):
        check = StoryInstructions().check
        for problem in stories[:10]:
            for weather in ("warm", "foggy"):
                other = re.sub(r"One (\w+) day,", f"One {weather} day,", problem.response)
                assert check(other, problem.answer).correct

    def test_a_story_about_something_else_has_the_form_but_is_wrong(self, stories):
        check = StoryInstructions().check
        for problem, other in itertools.pairwise(stories):
            assert check(other.response, problem.answer) == (False, True)

    def test_half_a_story_or_one_that_contradicts_itself_is_no_story(self, stories):
        check = StoryInstructions().check
        for problem in stories[:10]:
            half = problem.response[: len(problem.response) // 2]
            name = problem.answer.split(",")[0]
            first, _, rest = problem.response.rpartition(name)
            other = f"{first}{'Walter' if name != 'Walter' else 'Ned'}{rest}"
            for text in (half, other, f"{problem.response} The end."):
                assert check(text, problem.answer) == (False, False)
            assert not check_consistency(problem.response).mistakes

    def test_separators_of_the_rules_are_no_way_around(self, stories):
        text, answer = stories[0].response, stories[0].answer
        assert not StoryInstructions().check(f"{text}\t{text}", answer).formatted


class TestStoryOpenings:
    def test_there_are_several_right_sentences_for_each_wish(self):
        exercise, wish = StoryOpenings(), "Mia, an honest fox near the old mill."
        for text in (
            "In a house near the old mill lived an honest fox named Mia.",
            "Mia was an honest fox who lived by the old mill.",
            "Everyone near the old mill knew Mia, an honest fox with messy hair.",
        ):
            assert exercise.check(text, wish).correct

    @pytest.mark.parametrize(
        "text",
        [
            "In a house near the old mill lived an honest fox named Lily.",
            "In a house near the old mill lived a brave fox named Mia.",
            "In a house near the old mill lived an honest lion named Mia.",
            "In a house near the tiny mill lived an honest fox named Mia.",
            "In a house near the old lake lived an honest fox named Mia.",
            "Once upon a time, there was an honest fox named Mia, who had freckles.",
        ],
    )
    def test_one_fact_that_was_not_asked_for_or_is_left_out_makes_it_wrong(self, text):
        assert StoryOpenings().check(text, "Mia, an honest fox near the old mill.") == (False, True)

    @pytest.mark.parametrize(
        "text",
        [
            "Mia, honest, fox, old, mill",
            "Mia, an honest fox near the old mill.",
            "Mia was an honest fox who lived by the old mill. She",
            "Mia was a honest fox who lived by the old mill.",
            "mia was an honest fox who lived by the old mill.",
        ],
    )
    def test_words_without_the_sentence_are_none(self, text):
        assert StoryOpenings().check(text, "Mia, an honest fox near the old mill.") == (False, False)


def test_questions_about_the_children_are_short_and_only_about_them():
    problems = StoryQuestions(about="children").problems(3, "train", 0, 30)
    asked = [problem.prompt.splitlines()[-1] for problem in problems]
    assert all(question.startswith(("Who is the friend of", "What is")) for question in asked)
    others = StoryQuestions().problems(3, "train", 0, 30)
    short, long = (sum(len(problem.prompt) for problem in some) for some in (problems, others))
    assert short < 0.9 * long
    with pytest.raises(ValueError, match=r"data\.about"):
        EXERCISES.check("story_questions", {"about": "places"}, where="data")
