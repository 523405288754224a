"""CharTokenizer: one id per character, for small experiments and for watching a model learn to spell.

    "abba" -> [2, 3, 3, 2]        with END_OF_TEXT = 0, unknown = 1, "a" = 2, "b" = 3

The vocabulary is the allowed characters, or those of the training text, in the order of their code points.
What happens to any other character is the rule `unknown`: "replace" makes it one id that reads U+FFFD,
"drop" leaves it out, "error" raises.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from scratchlm.tokenizer import TOKENIZERS
from scratchlm.tokenizer.base import END_OF_TEXT, Tokenizer, check_name
from scratchlm.tokenizer.formats import read_saved, saved_problem
from scratchlm.tokenizer.streaming import repair_surrogates

Unknown = Literal["error", "drop", "replace"]
REPLACEMENT = "\ufffd"


class CharTokenizer(Tokenizer):
    """One id per character."""

    def __init__(self, characters: Iterable[str], *, unknown: str = "replace") -> None:
        """Number the characters.

        Args:
            characters: The vocabulary; order and repetitions do not matter.
            unknown: What happens to other characters: "error", "drop" or "replace" (by one id for all).

        Raises:
            ValueError: There is no character, or the rule is not known.
        """
        check_name(unknown, ("error", "drop", "replace"), "rule for unknown characters")
        self.unknown = unknown
        self.characters = "".join(sorted({repair_surrogates(character) for character in characters}))
        if unknown == "replace":
            self.characters = self.characters.replace(REPLACEMENT, "")
        if not self.characters:
            raise ValueError("a character tokenizer needs at least one character: no text was given.")
        self.special_tokens = {END_OF_TEXT: 0}
        tokens = [END_OF_TEXT, *([REPLACEMENT] if unknown == "replace" else []), *self.characters]
        self._token_bytes = {id: token.encode("utf-8") for id, token in enumerate(tokens)}
        codes = np.array([ord(token) for token in tokens[1:]], np.int64)
        self._sorted_codes, self._sorted_ids = np.sort(codes), np.argsort(codes).astype(np.int32) + 1

    def _encode_array(self, text: str) -> Int32[np.ndarray, " tokens"]:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        places = np.minimum(np.searchsorted(self._sorted_codes, codes), len(self._sorted_codes) - 1)
        known = self._sorted_codes[places] == codes
        ids = self._sorted_ids[places]
        if known.all():
            return ids
        if self.unknown == "drop":
            return ids[known]
        if self.unknown == "replace":
            return np.where(known, ids, np.int32(1))
        place = int(np.flatnonzero(~known)[0])
        raise ValueError(
            f"character {text[place]!r} (number {place} of the text) is not in the vocabulary of "
            f"{len(self.characters)} characters; allow it, or choose unknown=drop or unknown=replace."
        )

    def _stable_prefix(self, text: str) -> int:
        return len(text)

    def _content(self) -> dict[str, Any]:
        return {
            "type": "chars",
            "unknown": self.unknown,
            "special_tokens": self.special_tokens,
            "characters": self.characters,
        }

    @classmethod
    def load(cls, path: Path) -> "CharTokenizer":
        """Load what `save` wrote.

        Raises:
            ValueError: The file is missing or damaged; the message names it.
        """
        content = read_saved(Path(path), type="chars")
        with saved_problem(Path(path)):
            if not isinstance(content.get("characters"), str):
                raise ValueError("'characters' must be a text")
            if not isinstance(content.get("unknown"), str):
                raise ValueError("'unknown' must be the name of a rule")
            return cls(content["characters"], unknown=content["unknown"])


@TOKENIZERS.register("chars")
class CharTrainer:
    """One id per character of the corpus, or of a given list."""

    tokenizer = CharTokenizer

    def __init__(self, *, allowed: str | None = None, unknown: Unknown = "replace") -> None:
        """Choose the settings.

        Args:
            allowed: The characters of the vocabulary; by default all those of the training text.
            unknown: What happens to other characters: "error", "drop" or "replace" (by one id for all).
        """
        self.allowed = allowed
        self.unknown: Unknown = unknown

    def train(
        self, texts: Iterable[str], progress: Callable[[str, int, int], None] | None = None
    ) -> CharTokenizer:
        """Collect the characters of `texts`, END_OF_TEXT left out.

        Raises:
            ValueError: There is no text, or unknown is "error" and a character is not allowed.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string; pass a list of texts: [text].")
        found: set[str] = set()
        done = 0
        for text in texts:
            found.update(repair_surrogates(text.replace(END_OF_TEXT, "")))
            done += len(text)
            if progress is not None:
                progress("count", done, 0)
        if done == 0:
            raise ValueError("the training text is empty: nothing to learn a vocabulary from.")
        if self.allowed is None:
            return CharTokenizer(found, unknown=self.unknown)
        tokenizer = CharTokenizer(self.allowed, unknown=self.unknown)
        tokenizer.encode_ordinary("".join(sorted(found)))  # raises where the rule says so
        return tokenizer
