"""Your own text: files and folders come in, documents in two splits come out.

    valid_paths given          those files are the validation split, `paths` the training split
    at least k documents       every k-th document is validation, k = round(1 / valid_fraction)
    fewer documents            the last `valid_fraction` of all characters is: one book is enough

Where a document stands in a plain text file can be found without reading it, so such files come in portions
that many processes read at once; not so by the third rule.

The third rule cuts a document in two, at the end of a paragraph, a line or at least a word. The first scan,
which counts documents, stops at k; only the third rule needs to see everything once before reading begins.
"""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scratchlm.data import CORPORA
from scratchlm.data.corpora import Chunk, Corpus, Portion, Split
from scratchlm.data.portions import Format, choose, chosen_portion, file_portions
from scratchlm.data.reading import COMPRESSED, SUFFIXES, Errors, kind_of, read_documents, safe_end
from scratchlm.data.sums import Content, content_of, fingerprint_of
from scratchlm.runtime import log
from scratchlm.tokenizer import END_OF_TEXT

MAX_VALID_FRACTION = 0.5
"""More validation than training text is a mistake."""
TAIL_WINDOW = 4096
"""Characters before the intended cut in which the end of a paragraph or line is looked for: about a page."""


class _Extent(NamedTuple):
    """What the first scan found; it stops at enough documents for every k-th to be validation."""

    num_documents: int
    num_characters: int


@CORPORA.register("files")
class FilesCorpus(Corpus):
    """Your own files and folders: .txt, .jsonl, .parquet, also .gz and .zst."""

    name = "files"
    licence = "whatever the owner of the files says"

    def __init__(
        self,
        *,
        paths: tuple[str, ...],
        valid_paths: tuple[str, ...] = (),
        valid_fraction: float = 0.05,
        separator: str = END_OF_TEXT,
        text_key: str = "text",
        errors: Errors = "strict",
    ) -> None:
        """Name the files; they are read when chunks are asked for.

        Args:
            paths: Files, and folders whose files with known suffixes are taken in the order of their names.
            valid_paths: The same for the validation split; empty to split `paths`.
            valid_fraction: How much of `paths` is validation where `valid_paths` is empty; above 0, at most
                0.5.
            separator: What stands between documents in plain text; "" where each file is one document.
            text_key: Where the text stands in .jsonl and .parquet.
            errors: "strict" refuses invalid UTF-8 and NUL bytes, "replace" puts U+FFFD in their place.

        Raises:
            ValueError: No paths, or a fraction out of range.
        """
        if not paths:
            raise ValueError("files: paths is empty; name at least one file or folder of text.")
        if not 0 < valid_fraction <= MAX_VALID_FRACTION:
            raise ValueError(
                f"files: valid_fraction={valid_fraction} must be above 0 and at most {MAX_VALID_FRACTION}; "
                "or name the validation files in valid_paths."
            )
        self.paths, self.valid_paths, self.valid_fraction = paths, valid_paths, valid_fraction
        self.separator, self.text_key, self.errors = separator, text_key, errors

    def chunks(self, split: Split) -> Iterator[Chunk]:
        """Yield the documents of `split` by the rules at the head of this module."""
        if self.valid_paths:
            return self._not_empty(self._read(self._files(split)), split)
        extent = self._extent
        if extent.num_documents >= self._period:
            return choose(self._read(self._files("train")), self._period, split)
        target = int(extent.num_characters * (1 - self.valid_fraction))
        if not 0 < target < extent.num_characters:
            raise ValueError(
                f"{self.paths[0]}: {extent.num_characters} characters are too few to keep "
                f"{self.valid_fraction:.0%} of them for validation; add text or set valid_paths."
            )
        window = min(TAIL_WINDOW, (extent.num_characters - target) // 2)
        return _cut_at(self._read(self._files("train")), target, window, split)

    def portions(self, split: Split, num_characters: int) -> Iterator[Portion]:
        """Yield where to read, as far as the files are such that one can (see portions.py)."""
        if self.valid_paths:
            period = 0
        elif self._extent.num_documents >= self._period:
            period = self._period
        else:  # where to cut depends on all characters before it
            yield from super().portions(split, num_characters)
            return
        form = Format(self.separator, self.text_key, self.errors)
        first = found = 0
        for path in self._files(split):
            for part in file_portions(path, form, num_characters):
                portion = chosen_portion(part, period, split, first) if period else part.portion
                first += part.num_documents
                if portion.num_chunks:
                    yield portion
                    found += 1
        if not found:
            raise ValueError(self._emptiness(split))

    def num_bytes(self, split: Split) -> int | None:
        """The files' sizes, in proportion; None where a file is compressed or has more in it than text."""
        files = self._files(split)
        if any(path.suffix in COMPRESSED or kind_of(path) != ".txt" for path in files):
            return None
        share = (
            1.0 if self.valid_paths else self.valid_fraction if split == "valid" else 1 - self.valid_fraction
        )
        return int(sum(path.stat().st_size for path in files) * share)

    def fingerprint(self) -> str:
        """Hash the settings and the content of every file (once; about a second per GB)."""
        content = self.content()
        return fingerprint_of(content.form, self._sums.of(content.leaves))

    def content(self) -> Content:
        """The settings, and all files of both splits."""
        settings = [self.valid_fraction, self.separator, self.text_key, self.errors]
        return content_of(["files", settings, [self._files("train"), self._files("valid")]])

    @property
    def _period(self) -> int:
        return max(2, round(1 / self.valid_fraction))

    @functools.cached_property
    def _extent(self) -> _Extent:
        num_documents = num_characters = 0
        for chunk in self._not_empty(self._read(self._files("train")), "train"):
            num_documents += chunk.ends_document
            num_characters += len(chunk.text)
            if num_documents >= self._period:
                break
        return _Extent(num_documents, num_characters)

    def _files(self, split: Split) -> list[Path]:
        """The files to read for `split`; validation files inside a training folder are no training files."""
        if not self.valid_paths:
            return find_files(self.paths)
        valid = find_files(self.valid_paths)
        if split == "valid":
            return valid
        held_out = {path.resolve() for path in valid}
        files = [path for path in find_files(self.paths) if path.resolve() not in held_out]
        if not files:
            raise ValueError(
                f"{', '.join(self.paths)}: all of these are in valid_paths; nothing is left to train on."
            )
        return files

    def _read(self, files: list[Path]) -> Iterator[Chunk]:
        for path in files:
            yield from read_documents(
                path, separator=self.separator, text_key=self.text_key, errors=self.errors
            )

    def _not_empty(self, chunks: Iterator[Chunk], split: Split) -> Iterator[Chunk]:
        first = next(chunks, None)
        if first is None:
            raise ValueError(self._emptiness(split))
        yield from itertools.chain([first], chunks)

    def _emptiness(self, split: Split) -> str:
        paths = self.paths if split == "train" or not self.valid_paths else self.valid_paths
        return f"{', '.join(paths)}: empty, there is no text in it; give a file with some text."


def find_files(paths: tuple[str, ...]) -> list[Path]:
    """The files that `paths` name, those of a folder sorted by name, each once.

    Raises:
        ValueError: A path does not exist, or a folder holds no file of a known kind.
    """
    found: dict[Path, None] = {}
    for name in paths:
        path = Path(name).expanduser()
        if not path.is_dir():
            if not path.exists():
                raise ValueError(f"{path}: no such file or folder.")
            found[path] = None
            continue
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path))
        known = [file for file in inside if _is_known(file)]
        if not known:
            raise ValueError(f"{path}: no file of a known kind in this folder; known: {_KNOWN}.")
        if len(known) < len(inside):
            other = next(file for file in inside if file not in known)
            _tell_once(path, len(inside) - len(known), other.name)
        found.update(dict.fromkeys(known))
    return list(found)


@functools.cache
def _tell_once(path: Path, number: int, name: str) -> None:
    """Say what is left out, however often a folder is looked at."""
    files = (
        f"1 file of another kind, {name}" if number == 1 else f"{number} files of other kinds, such as {name}"
    )
    log.warning("%s: left out %s.", path, files)


_KNOWN = f"{', '.join(SUFFIXES)}, and {' or '.join(COMPRESSED)} after them"


def _is_known(path: Path) -> bool:
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    return suffix in SUFFIXES or (path.suffix in COMPRESSED and suffix == "")


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _cut_at(chunks: Iterator[Chunk], target: int, window: int, split: Split) -> Iterator[Chunk]:
    """What stands before about character `target` for training, the rest for validation."""
    position = 0
    for chunk in chunks:
        end = position + len(chunk.text)
        if end < target:
            before, after = chunk, None
        elif position >= target:
            before, after = None, chunk
        elif end == target:
            before, after = Chunk(chunk.text, ends_document=True), None
        else:
            cut = tail_start(chunk.text, target - position, window)
            before = Chunk(chunk.text[:cut], ends_document=True)
            after = Chunk(chunk.text[cut:], chunk.ends_document)
        part = before if split == "train" else after
        if part is not None:
            yield part
        position = end


def tail_start(text: str, target: int, window: int) -> int:
    r"""Where to cut: after the last paragraph, line or word that ends in the `window` before `target`.

    Example: tail_start("one.\\n\\ntwo three four", 12, 8) -> 6, after the paragraph; with window 3 -> 9,
    after "two".
    """
    first = max(0, target - window)
    for mark in ("\n\n", "\n"):
        found = text.rfind(mark, first, target)
        if found >= 0:
            return found + len(mark)
    end = safe_end(text, target)
    return end if end > first else target
