"""Known corpora on the internet: a name comes in, documents go out; address, checksum and licence are here.

Nothing is downloaded unasked: `fetch` does it (`scratchlm corpus fetch NAME`), and reading a corpus that is
not there says so. Addresses name a fixed revision where the publisher offers one, so that a checksum stays
right.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from scratchlm.data import CORPORA
from scratchlm.data.corpora import Chunk, Corpus, Portion, Split, carried_portions
from scratchlm.data.download import download
from scratchlm.data.portions import Format, file_portions
from scratchlm.data.reading import cut_document, parquet_texts, read_documents
from scratchlm.data.sums import Content, content_of, fingerprint_of
from scratchlm.tokenizer import END_OF_TEXT

CACHE = "~/.cache/scratchlm/corpora"
"""Where downloads lie unless `folder` says otherwise."""

HUB = "https://huggingface.co/datasets"
TINYSTORIES = f"{HUB}/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
WIKITEXT = f"{HUB}/Salesforce/wikitext/resolve/b08601e04326c79dfdd32d625aee71d232d685c3"
OPENWEBTEXT = f"{HUB}/stanford-cs336/owt-sample/resolve/main"
SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data"
)
SHAKESPEARE_TRAIN = 1_003_854
"""Characters of the training split: int(0.9 * 1,115,394), as nanoGPT's data/shakespeare_char cuts it."""


class RemoteFile(NamedTuple):
    """One file of a corpus."""

    split: Split
    url: str
    size: int | None
    """Bytes, where known."""
    sha256: str | None
    """Checksum, where known."""

    @property
    def name(self) -> str:
        """Its file name here."""
        return self.url.rpartition("/")[2]


class RemoteCorpus(Corpus):
    """A corpus that must be fetched once."""

    files: tuple[RemoteFile, ...]

    def __init__(self, *, folder: str = CACHE, train_bytes: int | None = None) -> None:
        """Say where the files lie, or shall lie, and how much of them is read.

        Args:
            folder: The corpus has a folder of its name in there.
            train_bytes: Read the training split up to the document in which it reaches so many bytes; None
                for all of it. A run of a few million tokens need not encode gigabytes.

        Raises:
            ValueError: `train_bytes` is below 1.
        """
        if train_bytes is not None and train_bytes < 1:
            raise ValueError(
                f"{self.name}: train_bytes={train_bytes} must be at least 1; leave it out for all."
            )
        self.folder, self.train_bytes = Path(folder).expanduser() / self.name, train_bytes

    def fetch(self, progress: Callable[[str, int, int | None], None] | None = None) -> list[Path]:
        """Download what is missing; a call after an interruption goes on.

        Args:
            progress: Called with (file name, bytes here, bytes in all or None).

        Raises:
            DownloadError: A file cannot be had, or is not the one that is expected.
            OSError: The disk is full or not writable.
        """
        return [self._fetch_one(file, progress) for file in self.files]

    def is_here(self) -> bool:
        """Whether every file has been fetched."""
        return all((self.folder / file.name).is_file() for file in self.files)

    def chunks(self, split: Split) -> Iterator[Chunk]:
        """Yield the documents of the publisher's split.

        Raises:
            ValueError: Not fetched yet, or damaged.
        """
        limit = self.train_bytes if split == "train" else None
        yield from first_documents(self.read_split(split), limit)

    def read_split(self, split: Split) -> Iterator[Chunk]:
        """Yield all documents of the publisher's split."""
        for path in [self._path(file) for file in self.files if file.split == split]:
            yield from self.read(path)

    @abstractmethod
    def read(self, path: Path) -> Iterator[Chunk]:
        """Yield the documents of one file."""

    def fingerprint(self) -> str:
        """Hash the checksums; a file whose checksum is not known is read for it."""
        content = self.content()
        return fingerprint_of(content.form, self._sums.of(content.leaves))

    def content(self) -> Content:
        """The checksums that are known, and the files whose checksum is not."""
        checksums = [file.sha256 or self._path(file) for file in self.files]
        return content_of([self.name, checksums, *([] if self.train_bytes is None else [self.train_bytes])])

    def num_bytes(self, split: Split) -> int | None:
        """The files' sizes where they are plain text of a known size."""
        files = [file for file in self.files if file.split == split]
        if any(file.size is None or not file.name.endswith(".txt") for file in files):
            return None
        total = sum(file.size or 0 for file in files)
        return total if self.train_bytes is None or split == "valid" else min(total, self.train_bytes)

    def _fetch_one(self, file: RemoteFile, progress: Callable[[str, int, int | None], None] | None) -> Path:
        report = None if progress is None else lambda here, total: progress(file.name, here, total)
        path = self.folder / file.name
        return download(file.url, path, size=file.size, sha256=file.sha256, progress=report)

    def _path(self, file: RemoteFile) -> Path:
        path = self.folder / file.name
        if not path.is_file():
            raise ValueError(
                f"{self.name}: {path} is not here; fetch it first: scratchlm corpus fetch {self.name}"
            )
        if file.size is not None and path.stat().st_size != file.size:
            raise ValueError(
                f"{path}: {path.stat().st_size} bytes instead of {file.size}; remove it, then "
                f"scratchlm corpus fetch {self.name}"
            )
        return path


class _PlainCorpus(RemoteCorpus):
    """Plain text with end-of-text between documents."""

    def portions(self, split: Split, num_characters: int) -> Iterator[Portion]:
        """Yield where to read, unless the text ends at so many bytes."""
        if split == "train" and self.train_bytes is not None:
            yield from super().portions(split, num_characters)
            return
        for path in [self._path(file) for file in self.files if file.split == split]:
            for part in file_portions(path, Format(END_OF_TEXT), num_characters):
                yield part.portion

    def read(self, path: Path) -> Iterator[Chunk]:
        """Yield the documents of one file."""
        return read_documents(path, separator=END_OF_TEXT, text_key="text")


class _WikiTextCorpus(RemoteCorpus):
    """Tables with one line of an article in each row."""

    def read(self, path: Path) -> Iterator[Chunk]:
        """Yield the articles of one file."""
        for article in join_articles(parquet_texts(path, "text", "strict")):
            yield from cut_document(article, started=False)


@CORPORA.register("tinystories")
class TinyStoriesCorpus(_PlainCorpus):
    """TinyStories, version 2: 2.2 GB of short stories by GPT-4 (Eldan and Li 2023)."""

    name = "tinystories"
    licence = "CDLA-Sharing-1.0"
    files = (
        RemoteFile(
            "train",
            f"{TINYSTORIES}/TinyStoriesV2-GPT4-train.txt",
            2_227_753_162,
            "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
        ),
        RemoteFile(
            "valid",
            f"{TINYSTORIES}/TinyStoriesV2-GPT4-valid.txt",
            22_502_601,
            "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
        ),
    )


@CORPORA.register("openwebtext-sample")
class OpenWebTextCorpus(_PlainCorpus):
    """CS336's sample of OpenWebText: 12 GB of web pages, 4.6 GB to download."""

    name = "openwebtext-sample"
    licence = "web text of its authors; the collection is offered under CC0"
    files = (
        RemoteFile("train", f"{OPENWEBTEXT}/owt_train.txt.gz", None, None),
        RemoteFile("valid", f"{OPENWEBTEXT}/owt_valid.txt.gz", None, None),
    )


@CORPORA.register("wikitext-2")
class WikiText2Corpus(_WikiTextCorpus):
    """WikiText-2, raw: 11 MB of good Wikipedia articles (Merity et al. 2016)."""

    name = "wikitext-2"
    licence = "CC BY-SA 3.0 and GFDL"
    files = (
        RemoteFile(
            "train",
            f"{WIKITEXT}/wikitext-2-raw-v1/train-00000-of-00001.parquet",
            6_357_543,
            "e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7",
        ),
        RemoteFile(
            "valid",
            f"{WIKITEXT}/wikitext-2-raw-v1/validation-00000-of-00001.parquet",
            657_209,
            "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c",
        ),
    )


@CORPORA.register("wikitext-103")
class WikiText103Corpus(_WikiTextCorpus):
    """WikiText-103, raw: 540 MB of good Wikipedia articles (Merity et al. 2016)."""

    name = "wikitext-103"
    licence = "CC BY-SA 3.0 and GFDL"
    files = (
        RemoteFile(
            "train", f"{WIKITEXT}/wikitext-103-raw-v1/train-00000-of-00002.parquet", 156_987_808, None
        ),
        RemoteFile(
            "train", f"{WIKITEXT}/wikitext-103-raw-v1/train-00001-of-00002.parquet", 157_088_770, None
        ),
        RemoteFile(
            "valid", f"{WIKITEXT}/wikitext-103-raw-v1/validation-00000-of-00001.parquet", 657_209, None
        ),
    )


@CORPORA.register("tiny-shakespeare")
class TinyShakespeareCorpus(_PlainCorpus):
    """Tiny Shakespeare: 1.1 MB of plays, cut at nine tenths as nanoGPT cuts it (Karpathy 2015)."""

    name = "tiny-shakespeare"
    licence = "public domain"
    files = (
        RemoteFile(
            "train",
            f"{SHAKESPEARE}/tinyshakespeare/input.txt",
            1_115_394,
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    )

    def read_split(self, split: Split) -> Iterator[Chunk]:
        """Yield what stands before the cut, or behind it; the file is ASCII, so bytes are characters."""
        text = self._path(self.files[0]).read_text(encoding="utf-8")
        part = text[:SHAKESPEARE_TRAIN] if split == "train" else text[SHAKESPEARE_TRAIN:]
        yield from cut_document(part, started=False)

    def portions(self, split: Split, num_characters: int) -> Iterator[Portion]:
        """Yield it with its text: it is small."""
        yield from carried_portions(self.chunks(split), num_characters)

    def num_bytes(self, split: Split) -> int:
        """The two sides of the cut."""
        behind = (self.files[0].size or 0) - SHAKESPEARE_TRAIN
        return SHAKESPEARE_TRAIN if split == "train" else behind


def first_documents(chunks: Iterator[Chunk], num_bytes: int | None) -> Iterator[Chunk]:
    """Yield chunks up to the end of the document in which they reach `num_bytes`; None yields all.

    Example: documents of 4, 4 and 4 bytes, num_bytes=5 -> the first two.
    """
    read = 0
    for chunk in chunks:
        yield chunk
        read += len(chunk.text.encode("utf-8"))
        if num_bytes is not None and read >= num_bytes and chunk.ends_document:
            return


_TITLE = re.compile(r" = [^=].* = \n?")


def join_articles(rows: Iterator[str]) -> Iterator[str]:
    r"""Join WikiText's lines to articles: a line such as " = Robert Boulter = " begins one.

    Example: [" = A = \n", " a b \n", " = = Part = = \\n", " = B = \\n"] -> 2 articles of 3 lines and 1.
    """
    article: list[str] = []
    for row in rows:
        if _TITLE.fullmatch(row) and article:
            yield "".join(article)
            article = []
        article.append(row)
    yield "".join(article)
