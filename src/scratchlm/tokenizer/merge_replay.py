"""Words -> parts over whose ends no given merge reaches, each distinct one once (`compiled.word_parts`)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64

from scratchlm.tokenizer.bpe_reference import Pair
from scratchlm.tokenizer.compiled import word_parts

_PARTS_AT_FIRST = 1 << 12


class WordParts:
    """The distinct parts of words, and which of them make up each word.

    Attributes:
        symbols: The parts, one behind the other, and `padding` more entries.
        starts: Start of each part, and the end of the last one.
    """

    def __init__(
        self,
        symbols: Int32[np.ndarray, " symbols"],
        starts: Int64[np.ndarray, " borders"],
        given: Sequence[Pair],
        *,
        padding: int,
    ) -> None:
        """Cut the words wherever no given merge joins the two bytes."""
        joins = np.zeros(1 << 16, np.uint8)
        for left, right in given:
            joins[left[-1] << 8 | right[0]] = 1
        num_symbols = int(starts[-1])
        found = np.empty(num_symbols + padding, np.int32)  # memory that is never written is never taken
        occurrences = np.empty(num_symbols, np.int32)
        self._bounds = np.empty(len(starts), np.int64)
        slots, part_starts = np.zeros(2 * _PARTS_AT_FIRST, np.int32), np.zeros(_PARTS_AT_FIRST + 2, np.int64)
        progress = np.zeros(4, np.int64)
        while not word_parts.cut_words(
            symbols, starts, joins, slots, found, part_starts, occurrences, self._bounds, progress
        ):
            slots = np.zeros(2 * len(slots), np.int32)
            part_starts = np.concatenate([part_starts, np.zeros(len(slots) // 4, np.int64)])
            word_parts.enter_parts(slots, found, part_starts, int(progress[word_parts.NUM_PARTS]))
        self.starts = part_starts[: int(progress[word_parts.NUM_PARTS]) + 1].copy()
        self.symbols = found[: int(self.starts[-1]) + padding].copy()
        self._occurrences = occurrences[: int(progress[word_parts.NUM_OCCURRENCES])].copy()

    def join(
        self, symbols: Int32[np.ndarray, " symbols"], lengths: Int32[np.ndarray, " parts"]
    ) -> Int64[np.ndarray, " borders"]:
        """Write the words of merged parts to `symbols`, where they were before; return their new starts.

        Args:
            symbols: Receives the words, which are no longer than they were.
            lengths: The present number of symbols of each part in `self.symbols`.
        """
        starts = np.empty(len(self._bounds), np.int64)
        word_parts.join_parts(
            symbols, starts, self._bounds, self._occurrences, self.symbols, self.starts, lengths
        )
        return starts
