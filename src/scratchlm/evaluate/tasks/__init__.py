"""Tasks that others measure their models by: a row of a file in, a question and how to judge its answer out.

    task.py        Question and the two kinds: chosen by likelihood, written and then read
    listed.py      a question and a list of choices: ARC, BoolQ, CommonsenseQA, COPA, OpenBookQA, PIQA, yours
    hellaswag.py   how does it go on?                mmlu.py       57 subjects, letters A to D
    schemas.py     who is "they"? Winograd           sentences.py  which sentence is grammatical? BLiMP
    endings.py     LAMBADA's last word, sums         numbers.py    GSM8K, MultiArith, SVAMP, yours

This file defines the family and imports none of its parts: they are found on the first look-up.
"""

from typing import TYPE_CHECKING

from scratchlm.registry import Family

if TYPE_CHECKING:
    from scratchlm.evaluate.tasks.task import Task

TASKS: "Family[Task]" = Family("task", package="scratchlm.evaluate.tasks", variable="TASKS")
