"""Scaffold-BPE: texts -> a BPE vocabulary without the tokens that only serve to make longer ones.

    merges      "A r i"  "z on a"  "Ari zona"  ...     as in byte-pair encoding, some more of them
    scaffolds   "zona", ...                            hardly ever left over, so they get no id
    encode      "Arizona" -> "Arizona"       "zona" -> zona -> "zon" "a"

A token's frequency falls when it is merged into longer ones. Where it falls below that of the next candidate,
the token is a scaffold: merging still uses it, the vocabulary gives its place to a token that occurs, and
what is left of it in an encoded text falls into its parts.

Training: see `scaffold_merges`. Encoding is ordinary byte-pair encoding with all tokens, the ids of scaffolds
behind the visible ones; a table then replaces each of them by its parts.

Source: Lian et al. 2024, https://arxiv.org/abs/2404.17808, algorithms 1 and 2; `scaffold_reference` says
where the paper leaves a choice and is the oracle of this file.
"""

import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from scratchlm.tokenizer import END_OF_TEXT, TOKENIZERS
from scratchlm.tokenizer.base import Tokenizer, check_specials
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import Pair
from scratchlm.tokenizer.bpe_train import BPETrainer
from scratchlm.tokenizer.compiled.count import PieceTable
from scratchlm.tokenizer.compiled.scaffold import demolish
from scratchlm.tokenizer.formats.printable import (
    all_from_printable,
    all_to_printable,
    merges_from_printable,
    split_merge_lines,
)
from scratchlm.tokenizer.formats.reading import saved_problem
from scratchlm.tokenizer.formats.saved import read_saved
from scratchlm.tokenizer.merging import Progress
from scratchlm.tokenizer.pretokenize import stable_prefix
from scratchlm.tokenizer.scaffold_merges import learn_scaffolds
from scratchlm.tokenizer.sources import Errors, FileSource, Source
from scratchlm.tokenizer.streaming import EncodedPart, utf8_of
from scratchlm.tokenizer.train_profile import TrainingProfile
from scratchlm.tokenizer.windows import Splitter, Window

log = logging.getLogger("scratchlm")


class ScaffoldTokenizer(Tokenizer):
    """Byte-pair encoding whose intermediate tokens fall apart where they are left over."""

    def __init__(
        self,
        merges: Sequence[Pair],
        scaffolds: Collection[bytes],
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        *,
        pattern: str = "gpt2",
    ) -> None:
        """Number the visible tokens: special tokens, the 256 bytes, the others in the order of their merges.

        Args:
            merges: Pairs of byte strings; the earlier one is merged first.
            scaffolds: What merges make but no text is encoded to.
            special_tokens: Texts that become one id.
            pattern: Name of the split pattern.

        Raises:
            ValueError: A scaffold is made by no merge, or the merges contradict each other.
        """
        self.merges = [(bytes(left), bytes(right)) for left, right in merges]
        makers = {left + right: (left, right) for left, right in self.merges}
        self.scaffolds = {bytes(token) for token in scaffolds}
        for token in sorted(self.scaffolds - makers.keys()):
            raise ValueError(f"scaffold {token!r}: no merge makes it, so it cannot fall into parts.")
        names = check_specials(special_tokens)
        tokens = [name.encode("utf-8") for name in names] + [bytes([value]) for value in range(256)]
        tokens += [token for token in makers if token not in self.scaffolds]
        hidden = [token for token in makers if token in self.scaffolds]
        self.expanded = BPETokenizer(dict(enumerate(tokens + hidden)), self.merges, names, pattern=pattern)
        self.pattern = pattern
        self.special_tokens = {name: id for id, name in enumerate(names)}
        self._token_bytes = dict(enumerate(tokens))
        parts = self._visible_parts({token: id for id, token in enumerate(tokens[len(names) :], len(names))})
        lists = [parts[token] for token in hidden]
        self._part_starts = np.array(list(itertools.accumulate(map(len, lists), initial=0)), np.int32)
        self._parts = np.fromiter(itertools.chain.from_iterable(lists), np.int32)

    def _visible_parts(self, ids: Mapping[bytes, int]) -> dict[bytes, list[int]]:
        """Ids of the visible parts of every token; a part's own parts are known, for it was merged before."""
        parts = {token: [id] for token, id in ids.items()}
        for rank, (left, right) in enumerate(self.merges):
            if left + right in parts:
                continue
            for part in (left, right):
                if part not in parts:
                    raise ValueError(f"merge {rank} ({left!r}, {right!r}): {part!r} is not made before it.")
            parts[left + right] = parts[left] + parts[right]
        return parts

    def demolish(self, ids: Int32[np.ndarray, " expanded"]) -> Int32[np.ndarray, " tokens"]:
        """Replace scaffolds, ids from `vocab_size` on, by the ids of their visible parts."""
        visible = np.empty(len(ids) + len(ids) // 8 + 16, np.int32)  # an estimate; a second try is exact
        count = demolish(ids, self.vocab_size, self._part_starts, self._parts, visible)
        if count > len(visible):
            visible = np.empty(count, np.int32)
            demolish(ids, self.vocab_size, self._part_starts, self._parts, visible)
        return visible[:count]

    def _encode_array(self, text: str) -> Int32[np.ndarray, " tokens"]:
        return self.demolish(self.expanded.encode_to_numpy(text).astype(np.int32))

    def encode_source(
        self, source: Source, start: int, stop: int, *, specials: Mapping[str, int], errors: Errors
    ) -> Iterator[EncodedPart]:
        """Encode source[start:stop], a range of `cut_source`, in parts; see `Tokenizer.encode_source`."""
        for part in self.expanded.encode_source(source, start, stop, specials=specials, errors=errors):
            ids = part.ids.astype(np.int32)
            places = np.flatnonzero(ids >= self.vocab_size)
            longer = np.diff(self._part_starts)[ids[places] - self.vocab_size] - 1
            moved = np.concatenate([np.zeros(1, np.int64), np.cumsum(longer, dtype=np.int64)])
            bounds = part.bounds + moved[np.searchsorted(places, part.bounds)]
            yield part._replace(ids=self.demolish(ids), bounds=bounds)

    def cut_source(self, source: Source, specials: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Cut a source where its parts can be encoded by themselves; a pure function of its bytes."""
        return self.expanded.cut_source(source, specials)

    def _stable_prefix(self, text: str) -> int:
        return stable_prefix(text, self.pattern)

    def _content(self) -> dict[str, Any]:
        return {
            "type": "scaffold",
            "pattern": self.pattern,
            "special_tokens": list(self.special_tokens),
            "merges": [" ".join(all_to_printable(pair)) for pair in self.merges],
            "scaffolds": all_to_printable(sorted(self.scaffolds)),
        }

    @classmethod
    def load(cls, path: Path) -> "ScaffoldTokenizer":
        """Load what `save` wrote.

        Raises:
            ValueError: The file is missing or damaged; the message names it.
        """
        content = read_saved(Path(path), type="scaffold")
        with saved_problem(Path(path)):
            lists = {}
            for key in ("merges", "scaffolds", "special_tokens"):
                lists[key] = content.get(key)
                if not isinstance(lists[key], list) or not all(isinstance(line, str) for line in lists[key]):
                    raise ValueError(f"{key!r} must be a list of texts")
            if not isinstance(content.get("pattern"), str):
                raise ValueError("'pattern' must be the name of a split pattern")
            return cls(
                merges_from_printable(split_merge_lines(lists["merges"])),
                all_from_printable(lists["scaffolds"]),
                lists["special_tokens"],
                pattern=content["pattern"],
            )


@TOKENIZERS.register("scaffold")
class ScaffoldTrainer:
    """Byte-pair encoding without the tokens that only serve to make longer ones."""

    tokenizer = ScaffoldTokenizer

    def __init__(
        self,
        *,
        vocab_size: int = 4096,
        pattern: str = "gpt2",
        special_tokens: tuple[str, ...] = (END_OF_TEXT,),
    ) -> None:
        """Choose the settings.

        Args:
            vocab_size: Number of ids in all: special tokens, 256 bytes, merges that are no scaffolds.
            pattern: Split pattern: gpt2, cl100k, o200k, llama3 or qwen2.
            special_tokens: Texts that become one id and are never merged with anything.

        Raises:
            ValueError: The vocabulary has no room for the bytes and special tokens, or the pattern is not
            known.
        """
        checked = BPETrainer(vocab_size=vocab_size, pattern=pattern, special_tokens=special_tokens)
        self.special_tokens, self.pattern, self.vocab_size = checked.special_tokens, pattern, vocab_size

    def train(
        self,
        texts: Iterable[str],
        progress: Progress | None = None,
        *,
        profile: TrainingProfile | None = None,
    ) -> ScaffoldTokenizer:
        """Learn the vocabulary from `texts`; each text is split for itself.

        Raises:
            ValueError: There is no text, or it holds no two adjacent bytes to merge.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string; pass a list of texts: [text].")
        data = map(utf8_of, texts)
        windows = Splitter(self.pattern, self.special_tokens).batches(data)
        return self._train(windows, 0, progress, profile)

    def train_on_file(
        self,
        path: Path | Sequence[Path],
        progress: Progress | None = None,
        *,
        profile: TrainingProfile | None = None,
    ) -> ScaffoldTokenizer:
        """Learn the vocabulary from a file of UTF-8 text, or from several, each a text of its own.

        Raises:
            ValueError: A file is missing, not UTF-8, or there is nothing to merge; the message names it.
        """
        paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
        num_bytes = sum(one.stat().st_size for one in paths if one.is_file())
        splitter = Splitter(self.pattern, self.special_tokens, errors="strict")
        where = f"{paths[0] if paths else 'no file'}{', ...' if len(paths) > 1 else ''}: "
        return self._train(_windows_of_files(paths, splitter), num_bytes, progress, profile, where=where)

    def _train(
        self,
        windows: Iterable[Window],
        num_bytes: int,
        progress: Progress | None,
        profile: TrainingProfile | None,
        where: str = "",
    ) -> ScaffoldTokenizer:
        profile, table = profile or TrainingProfile(), PieceTable()
        report: Progress = progress or (lambda phase, done, total: None)
        with profile.phase("count"):
            for window in windows:
                table.count(window.text, window.starts, window.bounds)
                profile.num_bytes += window.num_bytes
                report("count", profile.num_bytes, num_bytes)
        profile.num_threads, profile.num_occurrences = 1, table.num_occurrences
        profile.num_pieces, profile.table_bytes = table.num_pieces, table.num_bytes
        if table.num_pieces == 0:
            raise ValueError(f"{where}the training text is empty: nothing to learn a vocabulary from.")
        num_visible = self.vocab_size - 256 - len(self.special_tokens)
        with profile.phase("merge"):
            learnt = learn_scaffolds(table.words(), num_visible, progress=report)
        profile.num_merges = len(learnt.merges)
        if num_visible and not learnt.merges:
            raise ValueError(
                f"{where}the training text holds no two adjacent bytes to merge; give more text."
            )
        with profile.phase("vocabulary"):
            tokenizer = ScaffoldTokenizer(*learnt, self.special_tokens, pattern=self.pattern)
        if tokenizer.vocab_size < self.vocab_size:
            log.warning(
                "vocab_size=%d cannot be reached: at %d, the size it has, every piece is one token.",
                self.vocab_size,
                tokenizer.vocab_size,
            )
        return tokenizer


def _windows_of_files(paths: Sequence[Path], splitter: Splitter) -> Iterator[Window]:
    for path in paths:
        with FileSource(path) as source:
            yield from splitter.windows(source)
