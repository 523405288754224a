"""Pieces of text in, the text that is certain out: stop strings are found across the borders of tokens.

    stop ["END"]:   "the E" -> "the ",   "N" -> "",   "ough" -> "ENough"      no stop after all
                    "the E" -> "the ",   "N" -> "",   "D"    -> "", stopped

What may still turn into a stop string is kept back, and never more than that.
"""


class HeldText:
    """Text on its way out, kept back while its end may be the beginning of a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        """Watch for the texts in `stop`; empty ones are ignored."""
        self.stop = tuple(text for text in stop if text)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """Add `text`; return what is certain to be emitted.

        Example: stop ["END"]; push("the E") -> "the ", push("N") -> "", push("ough") -> "ENough"; had "D"
        come instead, push("D") -> "" and `stopped` would be True.
        """
        if self.stopped:
            return ""
        if not self.stop:
            return text
        self._held += text
        ends = [self._held.find(stop) for stop in self.stop]
        found = [end for end in ends if end >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        longest = max(overlap(self._held, stop) for stop in self.stop)
        cut = len(self._held) - longest
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """Return what was held back: nothing can follow any more."""
        out, self._held = self._held, ""
        return out


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop` without being all of it.

    Example: "the EN", "END" -> 2.
    """
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
