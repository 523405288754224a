"""WordTokenizer: one id per word, for a closed vocabulary and for seeing what subwords are good for.

    "the cat sat"      -> "the", " cat", " sat"         a word behind a blank is a word of its own
    "the axolotl"      -> "the", 32, 97, 120, 111, ...  unknown="bytes": each byte has an id, nothing is lost

The text is split by a split pattern (pretokenize.py) and each piece is looked up. The words are a given list,
each with and without a blank before it, or the most frequent pieces of the training text. What happens to
any other piece is the rule `unknown`: "bytes" spells it, "unk" makes it one id that reads U+FFFD, "error"
raises. With case="lower" every piece is put into lower case before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from scratchlm.tokenizer import END_OF_TEXT, TOKENIZERS
from scratchlm.tokenizer.base import Tokenizer, check_name, check_specials
from scratchlm.tokenizer.formats.reading import read_text, saved_problem
from scratchlm.tokenizer.formats.saved import read_saved
from scratchlm.tokenizer.pretokenize import compiled, parts, pretokenize, stable_prefix
from scratchlm.tokenizer.special_tokens import SpecialsFinder
from scratchlm.tokenizer.streaming import cut_specials, repair_surrogates

Unknown = Literal["bytes", "unk", "error"]
Case = Literal["keep", "lower"]
REPLACEMENT = "\ufffd"

DEFAULT_VOCAB_SIZE = 8192
"""Without a list and a size."""

_SHOWN_CHARACTERS = 40


class WordTokenizer(Tokenizer):
    """One id per word."""

    def __init__(
        self,
        words: Iterable[str],
        *,
        unknown: str = "bytes",
        case: str = "keep",
        pattern: str = "gpt2",
        special_tokens: Iterable[str] = (END_OF_TEXT,),
    ) -> None:
        """Number special tokens, then the 256 bytes or the unknown word if the rule needs them, then words.

        Args:
            words: Pieces of the split pattern, such as " cat"; repetitions do not matter. What the pattern
                splits is never found.
            unknown: What happens to other pieces: "bytes", "unk" or "error".
            case: "keep", or "lower": texts and words are put into lower case, and so come back.
            pattern: Name of the split pattern.
            special_tokens: Texts that become one id.

        Raises:
            ValueError: There is no word and no byte, or a rule or the pattern is not known.
        """
        check_name(unknown, ("bytes", "unk", "error"), "rule for unknown words")
        check_name(case, ("keep", "lower"), "rule for case")
        compiled(pattern)
        self.unknown, self.case, self.pattern = unknown, case, pattern
        names = check_specials(special_tokens)
        self.special_tokens = {name: id for id, name in enumerate(names)}
        tokens = [name.encode("utf-8") for name in names]
        self._unknown_id = len(tokens)
        if unknown == "bytes":
            tokens += [bytes([value]) for value in range(256)]
        elif unknown == "unk":
            tokens.append(REPLACEMENT.encode("utf-8"))
        self.words = self._numbered_words(words)
        self._ids = {word: id for id, word in enumerate(self.words, len(tokens))}
        if unknown == "bytes":  # a word of one byte is that byte
            self._ids |= {chr(value): self._unknown_id + value for value in range(128)}
        tokens += [word.encode("utf-8") for word in self.words]
        self._token_bytes = dict(enumerate(tokens))

    def _numbered_words(self, words: Iterable[str]) -> list[str]:
        given = dict.fromkeys(self._cased([repair_surrogates(word) for word in words]))
        if self.unknown == "bytes":
            return [word for word in given if len(word.encode("utf-8")) > 1]
        numbered = [word for word in given if word and not (self.unknown == "unk" and word == REPLACEMENT)]
        if not numbered:
            raise ValueError("a word tokenizer needs at least one word: no text and no list was given.")
        return numbered

    def _cased(self, pieces: list[str]) -> list[str]:
        return pieces if self.case == "keep" else [piece.lower() for piece in pieces]

    def _encode_array(self, text: str) -> Int32[np.ndarray, " tokens"]:
        found = [self._encode_part(part) for part in parts(text, self.pattern)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _encode_part(self, text: str) -> Int32[np.ndarray, " tokens"]:
        pieces = self._cased(pretokenize(text, self.pattern))
        ids: list[Any] = list(map(self._ids.get, pieces))
        if None not in ids:
            return np.array(ids, np.int32)
        if self.unknown == "unk":
            return np.array([self._unknown_id if id is None else id for id in ids], np.int32)
        if self.unknown == "error":
            self.check_known(pieces)
        first = self._unknown_id
        spelled: list[int] = []
        for id, piece in zip(ids, pieces, strict=True):
            if id is None:
                spelled += [first + value for value in piece.encode("utf-8")]
            else:
                spelled.append(id)
        return np.array(spelled, np.int32)

    def check_known(self, pieces: Iterable[str]) -> None:
        """Look every piece up.

        Raises:
            ValueError: One is no word; the message names it.
        """
        for piece in pieces:
            if piece not in self._ids:
                raise ValueError(
                    f"word {piece[:_SHOWN_CHARACTERS]!r} is not in the vocabulary of {len(self.words)} "
                    "words; add it, or choose unknown=bytes or unknown=unk."
                )

    def _stable_prefix(self, text: str) -> int:
        return stable_prefix(text, self.pattern)

    def _content(self) -> dict[str, Any]:
        return {
            "type": "words",
            "pattern": self.pattern,
            "unknown": self.unknown,
            "case": self.case,
            "special_tokens": list(self.special_tokens),
            "words": self.words,
        }

    @classmethod
    def load(cls, path: Path) -> "WordTokenizer":
        """Load what `save` wrote.

        Raises:
            ValueError: The file is missing or damaged; the message names it.
        """
        content = read_saved(Path(path), type="words")
        with saved_problem(Path(path)):
            for key in ("words", "special_tokens"):
                lines = content.get(key)
                if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                    raise ValueError(f"{key!r} must be a list of texts")
            for key in ("unknown", "case", "pattern"):
                if not isinstance(content.get(key), str):
                    raise ValueError(f"{key!r} must be a name")
            settings = {key: content[key] for key in ("unknown", "case", "pattern", "special_tokens")}
            return cls(content["words"], **settings)


@TOKENIZERS.register("words")
class WordTrainer:
    """One id per word: those of a given list, or the most frequent of the corpus."""

    tokenizer = WordTokenizer

    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        words: tuple[str, ...] = (),
        words_file: str | None = None,
        unknown: Unknown = "bytes",
        case: Case = "keep",
        pattern: str = "gpt2",
        special_tokens: tuple[str, ...] = (END_OF_TEXT,),
    ) -> None:
        """Choose the settings.

        Args:
            vocab_size: Most ids in all; by default 8192, or as many as the given list makes.
            words: The words to know; by default the most frequent of the training text. One that the pattern
                splits ("don't") counts as its pieces ("don", "'t").
            words_file: A UTF-8 file with one more word to know in every line.
            unknown: What happens to other words: "bytes" (spelled byte by byte), "unk" (one id for all) or
                "error".
            case: "keep", or "lower": everything is put into lower case.
            pattern: Split pattern: gpt2, cl100k, o200k, llama3 or qwen2.
            special_tokens: Texts that become one id and are no words.

        Raises:
            ValueError: The file cannot be read, the size has no room for a word, or a rule or the pattern is
            not known.
        """
        self._given = _pieces_of_list(words, words_file, pattern)
        self._settings: dict[str, Any] = {"unknown": unknown, "case": case, "pattern": pattern}
        self._settings["special_tokens"] = check_specials(special_tokens)
        empty = WordTokenizer(["word"], **self._settings)
        self._num_fixed = empty.vocab_size - 1
        self._cased = empty._cased
        if vocab_size is not None and vocab_size <= self._num_fixed:
            raise ValueError(
                f"vocab_size={vocab_size} is too small: special tokens and unknown={unknown} take "
                f"{self._num_fixed}; choose at least {self._num_fixed + 1}."
            )
        self._num_words = None if vocab_size is None else vocab_size - self._num_fixed

    def train(
        self, texts: Iterable[str], progress: Callable[[str, int, int], None] | None = None
    ) -> WordTokenizer:
        """Count the words of `texts` and number them, the most frequent first; a given list needs no texts.

        Raises:
            ValueError: There is neither text nor list, or unknown is "error" and a word would be unknown.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string; pass a list of texts: [text].")
        counts: Counter[str] = Counter()
        done = 0
        for text in texts:
            for pieces in self._pieces(repair_surrogates(text)):
                counts.update(self._cased(pieces))
            done += len(text)
            if progress is not None:
                progress("count", done, 0)
        if not counts and not self._given:
            raise ValueError("the training text is empty: nothing to learn a vocabulary from.")
        ordered: Sequence[str]
        if self._given:
            ordered = sorted(dict.fromkeys(self._cased(self._given)), key=lambda word: -counts[word])
        else:
            ordered = sorted(counts, key=lambda word: (-counts[word], word))
        if self._settings["unknown"] == "bytes":
            ordered = [word for word in ordered if len(word.encode("utf-8")) > 1]
        limit = self._num_words
        if limit is None and not self._given:
            limit = max(1, DEFAULT_VOCAB_SIZE - self._num_fixed)
        tokenizer = WordTokenizer(ordered[:limit], **self._settings)
        if self._settings["unknown"] == "error":
            tokenizer.check_known(counts)
        return tokenizer

    def _pieces(self, text: str) -> Iterator[list[str]]:
        for segment, _ in cut_specials(text, SpecialsFinder(self._settings["special_tokens"])):
            for part in parts(segment, self._settings["pattern"]):
                yield pretokenize(part, self._settings["pattern"])


def _pieces_of_list(words: Sequence[str], words_file: str | None, pattern: str) -> list[str]:
    """The pieces of each word, alone and behind a blank."""
    lines = [] if words_file is None else read_text(Path(words_file)).splitlines()
    given = [repair_surrogates(word) for word in (*words, *map(str.strip, lines)) if word]
    if words_file is not None and not given:
        raise ValueError(f"{words_file}: holds no word; write one in every line.")
    forms = (form for word in given for form in (word, word if word[0].isspace() else f" {word}"))
    return [piece for form in forms for piece in pretokenize(form, pattern)]
