"""A trained model and a split or a task come in, comparable numbers come out.

likelihood.py   loss, perplexity and bits per byte of a split; the place to start
places.py       the loss by place in a row, also beyond the training context
tasks/          questions that others measure their models by; questions.py finds, draws and shows them
scoring.py      how likely is an answer?     writing.py   what does the model write?
answers.py      which answer does a text state?
run_task.py     a model and a task -> figures with intervals (intervals.py)
harness.py      the same model for lm-eval, with the same numbers
"""

from scratchlm.evaluate.likelihood import Likelihood, evaluate_split

__all__ = ["Likelihood", "evaluate_split"]
