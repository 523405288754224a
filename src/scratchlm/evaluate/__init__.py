"""A trained model and a split come in, comparable numbers come out; likelihood.py is the place to start."""

from scratchlm.evaluate.likelihood import Likelihood, evaluate_split

__all__ = ["Likelihood", "evaluate_split"]
