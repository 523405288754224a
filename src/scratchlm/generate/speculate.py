r"""A text so far in, a guess at its next tokens out: one pass of the model then confirms several at once.

    guess         d1 d2 d3                       from the text's own past, or from a smaller model
    one pass      last d1 d2 d3  ->  logits after each of them
    confirm       t1 drawn from row 1; t1 = d1?  t2 drawn from row 2; t2 = d2?  ...  until one differs

A pass over a few tokens reads the weights once, as a pass over one does; where that is what takes the time,
confirmed tokens are nearly free. What is written stays what the model alone would write: a drafter here says
one token, not a distribution, so the rule of the source (accept d with probability p(d), else draw from p
without d) is the same as to draw t from p and to see whether t = d. Drawn so, a seed gives the same text with
and without guesses, up to the rounding of logits that are computed in passes of another size.

Sources: Leviathan et al. 2022, https://arxiv.org/abs/2211.17192, section 2.3 and appendix A.1, with a point
mass as the draft's distribution; guessing from the text itself: Saxena 2023, "Prompt lookup decoding",
https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch.nn import Module

from scratchlm.generate.runner_fused import fastest_runner

MOST = 4
"""Tokens of a guess: a pass over five rows costs about as much as one over one while weights are what is
read, and longer guesses are seldom right to their end."""


class Drafter(ABC):
    """Guesses the next tokens."""

    @abstractmethod
    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """Return the next tokens as guessed, at most `room` of them, none where it has no idea."""


class NgramDrafter(Drafter):
    """What followed the last time that the text's last tokens stood there.

    Example: longest=2, ids = [5, 6, 7, 8, 5, 6] -> [7, 8, 5, 6]: after the earlier 5, 6 came 7, 8, 5, 6.
    """

    def __init__(self, *, longest: int = 3, most: int = MOST) -> None:
        """Look for the last `longest` tokens, then for fewer; guess at most `most`.

        Raises:
            ValueError: A number is below 1.
        """
        for name, value in {"longest": longest, "most": most}.items():
            if value < 1:
                raise ValueError(f"NgramDrafter: {name}={value}; it must be at least 1.")
        self.longest, self.most = longest, most

    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """Return what followed the nearest earlier place with the same last tokens."""
        ids = list(ids)
        for length in range(min(self.longest, len(ids) - 1), 0, -1):
            end = ids[-length:]
            for start in range(len(ids) - length - 1, -1, -1):
                if ids[start : start + length] == end:
                    return ids[start + length : start + length + min(self.most, room)]
        return []


class ModelDrafter(Drafter):
    """What a smaller model with the same tokens thinks likeliest."""

    def __init__(self, model: Module, *, most: int = MOST) -> None:
        """Guess at most `most` tokens with `model`, in evaluation mode.

        Raises:
            ValueError: `most` is below 1.
        """
        if most < 1:
            raise ValueError(f"ModelDrafter: most={most}; it must be at least 1.")
        self.most = most
        self.runner = fastest_runner(model, 1)
        self._ids: list[int] = []

    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """Return the likeliest tokens one after the other; what the model has read already is kept."""
        ids, guesses = list(ids), []
        most = min(self.most, room, self.runner.context_length - len(ids))
        if most < 1:
            return []
        # the last token is computed anew: its logits are what is needed
        same = 0
        while same < min(len(self._ids), len(ids) - 1) and self._ids[same] == ids[same]:
            same += 1
        if same:
            self.runner.truncate(0, same)
        else:
            self.runner.clear(0)
        logits = self.runner.logits(self.runner.prefill(0, ids[same:])[-1:])
        self._ids = ids
        while True:
            guesses.append(int(logits[0].argmax()))
            if len(guesses) == most:
                return guesses
            logits = self.runner.decode([0], guesses[-1:])
            self._ids = [*self._ids, guesses[-1]]
