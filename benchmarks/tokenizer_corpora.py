"""Text files to measure tokenizers on, made once in a folder: code, books, stories, Cyrillic, CJK.

    code      Python sources of this machine's installation, one document each, up to `megabytes`
    books     English books, when the data folder has them
    cyrillic  Russian children's stories, when the data folder has them
    cjk       Japanese prose and Chinese paragraphs, when the data folder has them
    stories   generated, never two alike: any size
    mixed     half code, half stories, as long as there is code; any size, nothing twice

The data folder is named by SCRATCHLM_SHARED_DATA, or stands beside the repository as ../shared/data.
"""

import gzip
import itertools
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizer_tools import SEPARATOR

from scratchlm import runtime
from scratchlm.data.stories import generate_story

DATA = Path(os.environ.get("SCRATCHLM_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
MEGABYTE = 1_000_000


def corpus(name: str, folder: Path, *, megabytes: int = 60) -> Path | None:
    """The corpus `name` as one UTF-8 file of at most about `megabytes`; None where it cannot be made."""
    path = folder / f"{name}-{megabytes}.txt"
    if path.exists():
        return path
    makers = {"code": _code, "books": _books, "cyrillic": _cyrillic, "cjk": _cjk}
    makers |= {"stories": _stories, "mixed": _mixed}
    documents = makers[name]()
    first = next(documents, None)
    if first is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with (
        runtime.replace_atomically(path) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as f,
    ):
        left = megabytes * MEGABYTE
        for document in itertools.chain([first], documents):
            f.write(document + SEPARATOR)
            left -= len(document.encode("utf-8")) + len(SEPARATOR)
            if left <= 0:
                break
    return path


def _code() -> Iterator[str]:
    folders = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib")]
    for path in itertools.chain.from_iterable(sorted(folder.rglob("*.py")) for folder in folders):
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and SEPARATOR not in text:
            yield text


def _mixed() -> Iterator[str]:
    code, stories, written = _code(), _stories(), 0
    for text in code:
        yield text
        written += len(text)
        while written > 0:
            story = next(stories)
            yield story
            written -= len(story)
    yield from stories


def _books() -> Iterator[str]:
    plain, packed = DATA / "pretrain/gutenberg_books_a.txt", DATA / "pretrain/gutenberg_books_b.txt.gz"
    if plain.exists():
        yield from plain.read_text(encoding="utf-8").split(SEPARATOR)
    if packed.exists():
        with gzip.open(packed, "rt", encoding="utf-8") as file:
            yield from file.read().split(SEPARATOR)


def _cyrillic() -> Iterator[str]:
    path = DATA / "pretrain/tinystories_ru_train.txt"
    if path.exists():
        yield from path.read_text(encoding="utf-8").split(SEPARATOR)


def _cjk() -> Iterator[str]:
    path = DATA / "tokenizer/japanese_wagahai.txt"
    if not path.exists():
        return
    yield path.read_text(encoding="utf-8")
    for name in ("tokenizer/xquad_paragraphs.jsonl", "tokenizer/udhr.jsonl"):
        for line in (DATA / name).read_text(encoding="utf-8").splitlines():
            text = " ".join(value for value in json.loads(line).values() if isinstance(value, str))
            if sum("\u3000" <= character <= "\u9fff" for character in text) > len(text) // 2:
                yield text


def _stories() -> Iterator[str]:
    for index in itertools.count():
        yield generate_story(0, index)
