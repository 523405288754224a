r"""Text in chunks is cut where no token can cross; ids that leave one at a time become whole characters.

A cut is safe when the ids before it are the same whatever comes later. Two things can reach over an edge: a
special token that has only begun, and a piece of the split pattern (`\s+(?!\S)` looks at the character
after it). So the last characters, fewer than the longest special token, are held back; before them the
tokenizer says how far its pieces are settled. The text in front of a special token is settled up to the
token itself.
"""

import codecs
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import regex
from jaxtyping import Int32, Int64, Integer

from scratchlm.tokenizer.sources import Source, not_utf8
from scratchlm.tokenizer.special_tokens import SpecialsFinder

HELD_CHARACTERS = 8192
"""Text is cut once this much is held: small enough to be lazy, large enough that a call costs little."""

READ_BYTES = 1 << 16
"""Bytes of a source that are decoded at once."""


class SpecialsPattern(NamedTuple):
    """A regular expression that finds special tokens: the naive twin of `SpecialsFinder`."""

    pattern: regex.Pattern | None
    longest: int

    def spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Yield each special token in `text`: its first character, the one behind it, its name."""
        for match in self.pattern.finditer(text) if self.pattern is not None else ():
            yield match.start(), match.end(), match.group()


def specials_pattern(specials: Collection[str]) -> SpecialsPattern:
    """Compile the search for `specials`: at one place the longest that matches wins."""
    if not specials:
        return SpecialsPattern(None, 1)
    ordered = sorted(specials, key=lambda name: (-len(name), name))
    return SpecialsPattern(regex.compile("|".join(map(regex.escape, ordered))), len(ordered[0]))


def repair_surrogates(text: str) -> str:
    """Return `text` as UTF-8 can hold it: surrogate pairs joined, lone surrogates replaced by U+FFFD.

    Raises:
        ValueError: It is no text.
    """
    if not isinstance(text, str):
        raise ValueError(f"text: a str is needed, not {type(text).__name__}; bytes are for encode_bytes.")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def utf8_of(text: str) -> bytes:
    """The UTF-8 of `repair_surrogates(text)`; text without surrogates is encoded once.

    Raises:
        ValueError: It is no text.
    """
    try:
        return text.encode("utf-8")
    except (AttributeError, UnicodeEncodeError):
        return repair_surrogates(text).encode("utf-8")


def cut_stream(
    chunks: Iterable[str],
    *,
    specials: SpecialsFinder | SpecialsPattern,
    stable_prefix: Callable[[str], int],
    held_characters: int = HELD_CHARACTERS,
) -> Iterator[tuple[str, str | None]]:
    """Cut a stream of text into settled parts, each with the special token that follows it, if one does.

    Example: chunks ["a<|en", "doftext|>b"] -> ("a", "<|endoftext|>"), ("b", None).

    Args:
        chunks: The text, cut anywhere, also inside a surrogate pair.
        specials: The special tokens to cut out.
        stable_prefix: Text -> number of leading characters that are settled whatever follows.
        held_characters: Least number of new characters before a cut is tried.
    """
    held, incoming, size = "", [], 0
    wait = held_characters
    for chunk in chunks:
        incoming.append(chunk)
        size += len(chunk)
        if size < wait:
            continue
        text = held + "".join(incoming)
        broken = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        text = repair_surrogates(text[: len(text) - len(broken)])
        rest = yield from cut_specials(text, specials, last_start=len(text) - specials.longest)
        settled = stable_prefix(rest[: max(0, len(rest) - specials.longest + 1)])
        if settled > 0:
            yield rest[:settled], None
        # A piece that does not end is looked at again only after it has doubled: linear time in all.
        held, incoming, size = rest[settled:], [broken], 0
        wait = max(held_characters, len(held))
    text = repair_surrogates(held + "".join(incoming))
    yield from cut_specials(text, specials)


def cut_specials(
    text: str, specials: SpecialsFinder | SpecialsPattern, *, last_start: int | None = None
) -> Generator[tuple[str, str | None], None, str]:
    """Cut at the special tokens: yield the text before each with the token, then the rest with None.

    With `last_start`, tokens that start later are left alone, and the rest is returned in place of yielded.
    """
    start = 0
    for first, end, name in specials.spans(text):
        if last_start is not None and first > last_start:
            break
        yield text[start:first], name
        start = end
    if last_start is None and start < len(text):
        yield text[start:], None
    return text[start:]


class EncodedPart(NamedTuple):
    """Ids of a stretch of a source, in segments between special tokens.

    Attributes:
        ids: Those of all segments; where a segment's special token was asked for, its id follows.
        bounds: ids[bounds[i] : bounds[i + 1]] are those of segment i.
        specials: What ends each segment: the index of a special token, or a negative number for none.
        num_bytes: Bytes of the source that the part covers.
    """

    ids: Integer[np.ndarray, " tokens"]
    bounds: Int64[np.ndarray, " segments_and_one"]
    specials: Int32[np.ndarray, " segments"]
    num_bytes: int


def encode_parts(
    texts: Iterable[str],
    specials: Mapping[str, int],
    *,
    encode_array: Callable[[str], Integer[np.ndarray, " tokens"]],
    stable_prefix: Callable[[str], int],
) -> Iterator[EncodedPart]:
    """Encode a stream of text part by part, for any tokenizer; `specials` become their ids, -1 is none."""
    names = list(specials)
    for text, special in cut_stream(texts, specials=SpecialsFinder(names), stable_prefix=stable_prefix):
        ids, which, written = encode_array(text), -1, text
        if special is not None:
            if specials[special] >= 0:
                ids = np.append(ids, ids.dtype.type(specials[special]))
            which, written = names.index(special), text + special
        yield EncodedPart(
            ids, np.array([0, len(ids)]), np.array([which], np.int32), len(written.encode("utf-8"))
        )


def read_texts(source: Source, start: int, stop: int, *, errors: str) -> Iterator[str]:
    """Yield the text of source[start:stop] in blocks.

    Raises:
        ValueError: errors="strict" and it is no UTF-8; the message says where.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    block = np.empty(READ_BYTES, np.uint8)
    for position in range(start, stop, READ_BYTES):
        count = source.read_into(block[: min(READ_BYTES, stop - position)], position)
        held = len(decoder.getstate()[0])
        try:
            yield decoder.decode(block[:count].tobytes(), final=position + READ_BYTES >= stop)
        except UnicodeDecodeError as error:
            raise not_utf8(getattr(source, "name", "the text"), position - held + error.start) from None


class StreamDecoder:
    """Ids one at a time -> text; bytes of an unfinished character wait for the next id.

    The concatenation of everything that `push` and the final `flush` return equals `decode` of all ids.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """Return the characters that `id` completes, possibly none."""
        return self._decoder.decode(self._token_bytes(id))

    def flush(self) -> str:
        """Return what is left, U+FFFD for an unfinished character, and start anew."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
