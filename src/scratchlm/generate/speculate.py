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
    """Guesses a text's next tokens; each of an engine's slots has a drafter of its own."""

    @abstractmethod
    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """Return the next tokens as guessed, at most `room` of them, none where it has no idea.

        Args:
            ids: The text so far. Since the last `begin` it only grew.
            room: The most tokens that are of use.
        """

    def begin(self) -> None:  # noqa: B027
        """Forget the text: another one begins."""

    def another(self) -> "Drafter":
        """Return a drafter like this one for a text beside it; one that keeps nothing of a text: itself."""
        return self

    def refresh(self) -> None:  # noqa: B027
        """Take up weights that changed."""

    def warm_up(self) -> None:  # noqa: B027
        """Compile now what would be compiled on first use."""


class NgramDrafter(Drafter):
    """What followed the last time that the text's last tokens stood there.

    Each n-gram's last place is kept, so a guess costs the same however long the text is.

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
        self.begin()

    def another(self) -> "NgramDrafter":
        """Return a drafter with the same settings and no text."""
        return NgramDrafter(longest=self.longest, most=self.most)

    def begin(self) -> None:
        """Forget the text."""
        self._read = 0
        self._after: dict[tuple[int, ...], int] = {}

    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """Return what followed the nearest earlier place with the same last tokens."""
        # n-grams that end at the text's end are noted when something follows them
        for end in range(self._read + 1, len(ids)):
            for length in range(1, min(self.longest, end) + 1):
                self._after[tuple(ids[end - length : end])] = end
        self._read = max(0, len(ids) - 1)
        for length in range(min(self.longest, len(ids) - 1), 0, -1):
            place = self._after.get(tuple(ids[-length:]))
            if place is not None:
                return list(ids[place : place + min(self.most, room)])
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
        self.model, self.most = model, most
        self.runner = fastest_runner(model, 1)
        self.begin()

    def another(self) -> "ModelDrafter":
        """Return a drafter with the same weights and a cache of its own."""
        return ModelDrafter(self.model, most=self.most)

    def begin(self) -> None:
        """Forget the text."""
        self._ids: list[int] = []
        self._sure = 0

    def refresh(self) -> None:
        """Take up weights that changed; the text is read again."""
        self.runner.refresh()
        self.begin()

    def warm_up(self) -> None:
        """Compile now what would be compiled on first use."""
        self.runner.warm_up()

    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """Return the likeliest tokens one after the other; what the model has read already is kept."""
        guesses: list[int] = []
        most = min(self.most, room, self.runner.context_length - len(ids))
        if most < 1:
            return []
        # what it was asked about stays; of its own guesses, those that came true. The last token is computed
        # anew: its logits are what is needed
        same = min(self._sure, len(ids) - 1)
        while same < min(len(self._ids), len(ids) - 1) and self._ids[same] == ids[same]:
            same += 1
        if same:
            self.runner.truncate(0, same)
        else:
            self.runner.clear(0)
        logits = self.runner.logits(self.runner.prefill(0, ids[same:])[-1:])
        del self._ids[same:]
        self._ids += ids[same:]
        self._sure = len(self._ids)
        while True:
            guesses.append(int(logits[0].argmax()))
            if len(guesses) == most:
                return guesses
            logits = self.runner.decode([0], guesses[-1:])
            self._ids.append(guesses[-1])
