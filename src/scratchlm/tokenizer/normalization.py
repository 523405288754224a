r"""Text -> its composed form, Unicode's NFC: "e\u0301" -> "\u00e9"; where a stream may be cut for it.

Two texts that look the same may differ in their characters; NFC makes them equal. It composes a letter with
the marks that follow, so a stream must not be cut between them, nor where the composed text cannot be cut.

Source: Unicode Standard Annex 15, https://www.unicode.org/reports/tr15/.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Callable


def normalize(text: str, form: str | None) -> str:
    """`text` in the normalization form called `form`; None leaves it as it is."""
    if form is None or text.isascii():
        return text
    return unicodedata.normalize(form, text)


def settled_prefix(text: str, form: str, stable_prefix: Callable[[str], int]) -> int:
    """Number of leading characters of `text` whose ids stay the same whatever follows, once normalized.

    Args:
        text: As it came.
        form: The normalization form.
        stable_prefix: The same question about normalized text.
    """
    composed = normalize(text, form)
    settled = stable_prefix(composed)
    if settled == 0 or composed == text:
        return settled
    # The place in `text` that becomes `settled`: composed lengths grow with the prefix, but for the marks
    # that wait to be composed, so the place found is checked.
    place = bisect_left(range(len(text)), settled, key=lambda stop: len(normalize(text[:stop], form)))
    whole = normalize(text[:place], form), normalize(text[place:], form)
    return place if whole == (composed[:settled], composed[settled:]) else 0
