"""Portions: together they are the chunks of the corpus, whatever the text and wherever it is cut."""

import pickle
import random
import sys

import pytest

from scratchlm.data import CORPORA, portions, reading
from scratchlm.data.corpora import Chunk
from scratchlm.data.documents import load_documents
from scratchlm.data.files import FilesCorpus
from scratchlm.data.portions import Format, file_portions

PIECES = [
    "a",
    "b\n",
    "\n",
    "\r\n",
    " ",
    "\u3000",
    "<|endoftext|>",
    "<|endoftext|>",
    "<|endoft",
    "\u00e9",
    "\x1c",
]
PIECES += ["\u4e2d\u6587", "\x85", "word, word. ", "\n\n"]


def outcome(read):
    """What comes out: chunks, or the error."""
    try:
        return list(read())
    except ValueError as error:
        return str(error)


def loaded(portion):
    """What `load` gives, as chunks; None where it gives nothing."""
    texts = pickle.loads(pickle.dumps(portion.load))() if portion.load else None
    if texts is None:
        return None
    spans = zip(texts.firsts.tolist(), texts.stops.tolist(), strict=True)
    return [Chunk(texts.data[first:stop].tobytes().decode(), ends_document=True) for first, stop in spans]


def joined(corpus, split, num_characters):
    chunks = []
    for portion in corpus.portions(split, num_characters):
        found = list(pickle.loads(pickle.dumps(portion)).read())
        assert len(found) == portion.num_chunks > 0
        assert loaded(portion) in (None, found)
        chunks += found
    return chunks


@pytest.fixture
def _short_chunks(monkeypatch):
    monkeypatch.setattr(reading, "MAX_CHUNK", 40)
    monkeypatch.setattr(portions, "MAX_CHUNK", 40)


@pytest.mark.usefixtures("_short_chunks")
@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n\n", "\n", ""])
def test_portions_of_any_text_are_its_chunks(tmp_path, monkeypatch, separator):
    source = random.Random(separator)
    path, valid = tmp_path / "text.txt", tmp_path / "valid.txt"
    valid.write_text("x", encoding="utf-8")
    num_read = 0
    for _ in range(150):
        text = "".join(source.choice(PIECES) for _ in range(source.randint(1, 200)))
        path.write_bytes(("\ufeff" if source.random() < 0.2 else "").encode() + text.encode())
        monkeypatch.setattr(portions, "MAX_DOCUMENT", source.choice([10, 1000]))
        monkeypatch.setattr(portions, "WINDOW", source.choice([16, 100]))
        for setting in ({"valid_paths": (str(valid),)}, {"valid_fraction": 0.3}):
            for split in ("train", "valid"):
                corpus = FilesCorpus(paths=(str(path),), separator=separator, **setting)
                expected = outcome(lambda corpus=corpus, split=split: corpus.chunks(split))
                size = source.randint(1, 200)
                assert outcome(lambda c=corpus, s=split, n=size: joined(c, s, n)) == expected, (text, setting)
                num_read += isinstance(expected, list)
    assert num_read > 300


def test_portions_go_on_from_file_to_file(tmp_path):
    for number in range(3):
        documents = [f"document {number} {place}" for place in range(40)]
        (tmp_path / f"{number}.txt").write_text("<|endoftext|>".join(documents), encoding="utf-8")
    lines = "".join(f'{{"text": "line {place}"}}\n' for place in range(50))
    (tmp_path / "3.jsonl").write_text(lines, encoding="utf-8")
    for split in ("train", "valid"):
        corpus = FilesCorpus(paths=(str(tmp_path),), valid_fraction=0.1)
        assert joined(corpus, split, 200) == list(corpus.chunks(split))


def test_a_plain_file_is_cut_without_carrying_its_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a document of some length<|endoftext|>" * 2_000, encoding="utf-8")
    found = [part.portion for part in file_portions(path, Format("<|endoftext|>"), 10_000)]
    assert [portion.num_chunks for portion in found[:2]] == [526, 526]
    assert sum(portion.num_chunks for portion in found) == 2_000
    assert max(len(pickle.dumps(portion)) for portion in found) < 1_000
    assert all(loaded(portion) == list(portion.read()) for portion in found)


def test_a_damaged_place_is_named_by_its_byte_in_the_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"fine<|endoftext|>" * 100 + b"bad \xff<|endoftext|>" + b"fine<|endoftext|>" * 100)
    parts = list(file_portions(path, Format("<|endoftext|>"), 500))
    expected = outcome(lambda: reading.read_documents(path, separator="<|endoftext|>", text_key="text"))
    assert "byte 1704 (0xff) is not UTF-8" in expected
    found = [outcome(part.portion.read) for part in parts]
    assert [entry for entry in found if isinstance(entry, str)] == [expected]


def test_stories_are_written_by_whoever_reads_the_portion():
    corpus = CORPORA.build("stories", num_train=50, num_valid=7)
    for split in ("train", "valid"):
        assert joined(corpus, split, 5_000) == list(corpus.chunks(split))
    assert len(list(corpus.portions("train", 5_000))) == 7


def test_documents_of_white_space_are_left_out_whichever_it_is(tmp_path):
    path = tmp_path / "text.txt"
    blanks = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    others = ["\u200b", "\ufeff", "\u00ff", "\u2010", "\u1681", "\u3004", "x"]
    path.write_text("|".join([*blanks, *others, "".join(blanks), ""]), encoding="utf-8", newline="")
    texts = load_documents(path, "|", 0, path.stat().st_size)
    assert [
        texts.data[a:b].tobytes().decode() for a, b in zip(texts.firsts, texts.stops, strict=True)
    ] == others


@pytest.mark.parametrize("bad", [b"\xff", b"\0", b"\xed\xa0\x80", b"\xc0\xaf", b"\xe4\xb8"])
def test_what_is_no_text_is_left_to_the_reader_that_says_why(tmp_path, bad):
    path = tmp_path / "text.txt"
    path.write_bytes(b"fine|" * 100 + bad + b"|")
    assert load_documents(path, "|", 0, path.stat().st_size) is None
    assert load_documents(path, "|", 0, 500).firsts.tolist() == list(range(0, 500, 5))
