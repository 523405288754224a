"""Exercises as data: conversations and pairs of answers that are made when they are read, not stored.

    data.name=exercises      problems with their worked responses, of one exercise or of several
    data.name=story_pairs    stories with and without a contradiction

The problems are those of `posttrain/tasks`: numbered by the data's own seed, so that runs with other seeds
see the same demonstrations in another order, and held out by what they ask.
"""

from collections.abc import Iterator
from typing import Any

from scratchlm.posttrain import INSTRUCTIONS, PREFERENCES
from scratchlm.posttrain.datasets import Example, Instructions, Pair, Preferences, Split
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.story_pairs import story_pair

NUM_VALID = 100
"""Held-out problems of each exercise: their share of right ones is known to 5 points (one standard error)."""

MOST_MISTAKES = 6
"""Contradictions in a story: nearly every story has room for so many."""


@INSTRUCTIONS.register("exercises")
class ExerciseInstructions(Instructions):
    """Problems of the package's exercises with their worked responses."""

    def __init__(
        self, *, exercises: list[dict[str, Any]], num_valid: int = NUM_VALID, data_seed: int = 1
    ) -> None:
        """Choose exercises.

        Args:
            exercises: Each a table with `name`, `num` (training problems) and the exercise's own settings.
            num_valid: Held-out problems of each.
            data_seed: Which problems, of endlessly many.

        Raises:
            ValueError: There is none, a number is below 1, or an exercise or its settings are not known.
        """
        if not exercises or num_valid < 1:
            raise ValueError(
                'data: name at least one exercise, such as exercises=[{name="arithmetic", num=400}], and let '
                "num_valid be at least 1."
            )
        self.parts, self.num_valid, self.data_seed = [], num_valid, data_seed
        for place, table in enumerate(exercises):
            settings, where = dict(table), f"data.exercises[{place}]"
            name, num = settings.pop("name", None), settings.pop("num", None)
            if not isinstance(name, str) or not isinstance(num, int) or num < 1:
                raise ValueError(f"{where}: needs name and num, a number of problems of at least 1.")
            EXERCISES.check(name, settings, where=where)
            self.parts.append((name, EXERCISES.build(name, **settings), num))

    def read(self, split: Split, *, share: float, seed: int) -> Iterator[Example]:
        """Yield the problems of one exercise after the other; the held-out ones are always the same."""
        for name, exercise, num in self.parts:
            for index in range(num if split == "train" else self.num_valid):
                problem = exercise.problem(self.data_seed, split, index)
                asked = {"role": "user", "content": problem.prompt}
                said = {"role": "assistant", "content": problem.response}
                yield Example((asked, said), f"{name} {split} {index}")


@PREFERENCES.register("story_pairs")
class StoryPairs(Preferences):
    """A wish with a consistent story and the same story with a contradiction."""

    def __init__(
        self, *, num: int = 1000, num_valid: int = NUM_VALID, data_seed: int = 1, mistakes: int = 1
    ) -> None:
        """Choose how many.

        Args:
            num: Training pairs.
            num_valid: Held-out pairs.
            data_seed: Which pairs, of endlessly many.
            mistakes: Mentions that contradict the story in the worse answer, 1 to 6: more are easier to tell.

        Raises:
            ValueError: A number is out of range.
        """
        if min(num, num_valid) < 1:
            raise ValueError(f"data: num={num}, num_valid={num_valid}: both must be at least 1.")
        if not 1 <= mistakes <= MOST_MISTAKES:
            raise ValueError(f"data: mistakes={mistakes}: must be from 1 to {MOST_MISTAKES}.")
        self.num, self.num_valid, self.data_seed, self.mistakes = num, num_valid, data_seed, mistakes

    def read(self, split: Split, *, share: float, seed: int) -> Iterator[Pair]:
        """Yield the pairs in order; the held-out ones are always the same."""
        for index in range(self.num if split == "train" else self.num_valid):
            pair = story_pair(self.data_seed, split, index, mistakes=self.mistakes)
            prompt = ({"role": "user", "content": pair.prompt},)
            yield Pair(prompt, pair.chosen, pair.rejected, f"story_pairs {split} {index}")
