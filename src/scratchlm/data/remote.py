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
from scratchlm.data.corpora import Chunk, Corpus, Split, hash_of
from scratchlm.data.download import download
from scratchlm.data.reading import cut_document, parquet_texts, read_documents
from scratchlm.data.shards import hash_file
from scratchlm.tokenizer import END_OF_TEXT

CACHE = "~/.cache/scratchlm/corpora"
"""Where downloads lie unless `folder` says otherwise."""

HUB = "https://huggingface.co/datasets"
TINYSTORIES = f"{HUB}/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
WIKITEXT = f"{HUB}/Salesforce/wikitext/resolve/b08601e04326c79dfdd32d625aee71d232d685c3"
OPENWEBTEXT = f"{HUB}/stanford-cs336/owt-sample/resolve/main"


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

    def __init__(self, *, folder: str = CACHE) -> None:
        """Say where the files lie, or shall lie.

        Args:
            folder: The corpus has a folder of its name in there.
        """
        self.folder = Path(folder).expanduser() / self.name

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
        for path in [self._path(file) for file in self.files if file.split == split]:
            yield from self.read(path)

    @abstractmethod
    def read(self, path: Path) -> Iterator[Chunk]:
        """Yield the documents of one file."""

    def fingerprint(self) -> str:
        """Hash the checksums; a file whose checksum is not known is read for it."""
        return hash_of(self.name, [file.sha256 or hash_file(self._path(file)) for file in self.files])

    def num_bytes(self, split: Split) -> int | None:
        """The files' sizes where they are plain text of a known size."""
        files = [file for file in self.files if file.split == split]
        if any(file.size is None or not file.name.endswith(".txt") for file in files):
            return None
        return sum(file.size or 0 for file in files)

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
