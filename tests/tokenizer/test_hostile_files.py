"""Damaged and hostile files: a ValueError that names the file, soon; never a crash, a hang, another error."""

import json
import os
import socket
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import train_bpe_reference
from scratchlm.tokenizer.formats import (
    load_gpt2,
    load_huggingface,
    load_tiktoken,
    read_any,
    read_saved,
    save_gpt2,
    save_huggingface,
    save_tiktoken,
    saved_problem,
)
from scratchlm.tokenizer.formats.reading import MAX_FILE_BYTES, read_bytes

CORPUS = ["the cat \u00e9t\u00e9 sat there 12\n\n " * 9]
SECONDS = 3.0
"""What reading may take on a busy machine; alone it is a tenth."""

READERS = {
    "saved": BPETokenizer.load,
    "vocab": lambda path: load_gpt2(path, path.with_name("good_merges.txt")),
    "merges": lambda path: load_gpt2(path.with_name("good_vocab.json"), path),
    "huggingface": load_huggingface,
    "tiktoken": lambda path: load_tiktoken(path, pattern="gpt2"),
    "any": lambda path: read_any(path, pattern="gpt2"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a good file of every kind."""
    folder = tmp_path_factory.mktemp("good")
    vocab, merges = train_bpe_reference(CORPUS, vocab_size=275, special_tokens=())
    plain, named = BPETokenizer(vocab, merges), BPETokenizer(vocab, merges, ["<|endoftext|>"])
    named.save(folder / "saved")
    save_gpt2(named, folder / "vocab", folder / "merges")
    save_gpt2(named, folder / "good_vocab.json", folder / "good_merges.txt")
    save_huggingface(named, folder)
    (folder / "tokenizer.json").rename(folder / "huggingface")
    (folder / "tokenizer_config.json").unlink()
    save_tiktoken(plain, folder / "tiktoken")
    named.save(folder / "any")
    for kind, read in READERS.items():
        assert read(folder / kind).merges == merges
    return folder


def refuse(read, path):
    before = time.perf_counter()
    with pytest.raises(ValueError, match="tested") as caught:
        read(path)
    assert time.perf_counter() - before < SECONDS
    assert len(str(caught.value)) < 2000


def read_or_refuse(read, path):
    """What `read` returns; None after an error that names a file. Every other error passes."""
    try:
        return read(path)
    except ValueError as error:
        named = "tested" in str(error) or "good_" in str(error)
    assert named
    return None


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"\x00" * 1000,
        bytes(range(256)) * 40,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"format": "scratchlm.tokenizer", "version": ' + b"9" * 100_000 + b"}",
        b'{"!": 1e999}',
        b'{"!": NaN}',
        b'{"!": Infinity}',
        b'{"!": 1, "!": 2}',
        b'{"\\ud800": 1}',
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf{",
        b"\r\n\r\n\r\n",
        b"null",
        b'"text"',
        b"a" * 3_000_000,
        b"A" * 400_000 + b" 1\n",
    ],
    ids=lambda content: f"{content[:12]!r}x{len(content)}",
)
def test_what_is_no_tokenizer_is_refused_soon(good, tmp_path, kind, content):
    for name in ("good_vocab.json", "good_merges.txt"):
        (tmp_path / name).write_bytes((good / name).read_bytes())
    path = tmp_path / "tested"
    path.write_bytes(content)
    if kind == "merges" and not content.strip(b"\xef\xbb\xbf\r\n"):
        # Without merges the products are entries that nothing makes, and so count as special tokens.
        assert READERS[kind](path).merges == []
        return
    if kind == "merges":
        before = time.perf_counter()
        with pytest.raises(ValueError, match=r"tested|good_vocab"):
            READERS[kind](path)
        assert time.perf_counter() - before < SECONDS
        return
    refuse(READERS[kind], path)


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    for name in ("good_vocab.json", "good_merges.txt"):
        (tmp_path / name).write_text('{"!": 0}' if "vocab" in name else "", encoding="utf-8")
    folder, pipe, link, loop = (tmp_path / f"tested_{name}" for name in ("folder", "pipe", "link", "loop"))
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    for path in (folder, pipe, link, loop, tmp_path / "tested_none", folder / "none", pipe / "tested"):
        refuse(READERS[kind], path)


def test_sockets_are_refused(tmp_path):
    path = tmp_path / "tested"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        refuse(read_bytes, path)


@pytest.mark.parametrize("kind", READERS)
def test_a_huge_file_is_not_read(tmp_path, kind):
    for name in ("good_vocab.json", "good_merges.txt"):
        (tmp_path / name).write_text('{"!": 0}' if "vocab" in name else "", encoding="utf-8")
    path = tmp_path / "tested"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # takes no room on the disk
    before = time.perf_counter()
    with pytest.raises(ValueError, match=rf"tested: has 1,073,741,824 bytes; .* at most {MAX_FILE_BYTES:,}"):
        READERS[kind](path)
    assert time.perf_counter() - before < SECONDS


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vocab": {"!": 10**18}}, "1000000000000000000 is no id"),
        ({"vocab": {"!": 2**24}}, "16777216 is no id"),
        ({"vocab": {"!": -1}}, "-1 is no id"),
        ({"vocab": {"!": 1.0}}, "1.0 is no id"),
        ({"vocab": {"!": True}}, "True is no id"),
        ({"vocab": {"!": "1"}}, "'1' is no id"),
        ({"vocab": {"!": 34}}, "two tokens have the same id 34"),
        ({"vocab": {"": 999}}, "id 999 stands for no bytes"),
        ({"vocab": {"a b": 999}}, "the character ' ' stands for no byte"),
        ({"special_tokens": {"<|a|>": 34}}, "special token '<|a|>' has the id 34 of"),
        ({"special_tokens": {"a": 999}}, "ids 97 and 999 both stand for b'a'"),
        ({"special_tokens": {"": 999}}, "at least one character"),
        ({"special_tokens": {"<|a|>": 2**24 - 1}}, None),
        ({"special_tokens": []}, "'special_tokens' must be a table"),
        ({"merges": ["q z"]}, "b'qz' is not in the vocabulary; do these merges belong to it"),
        ({"merges": ["t"]}, "is not two tokens"),
        ({"merges": [" t"]}, "is not two tokens"),
        ({"merges": ["t "]}, "is not two tokens"),
        ({"merges": ["t  h"]}, "the character ' ' stands for no byte"),
        ({"merges": ["t h e"]}, "the character ' ' stands for no byte"),
        ({"merges": [["t", "h"]]}, "'merges' must be a list of texts"),
        ({"merges": {"t": "h"}}, "'merges' must be a list of texts"),
        ({"pattern": "gpt9"}, "pattern 'gpt9' is not known; choose one of gpt2"),
        ({"pattern": None}, "'pattern' must be the name"),
        ({"ignore_merges": 1}, "'ignore_merges' must be true or false"),
        ({"normalization": "NFKC"}, "normalization 'NFKC' is not known; choose one of NFC"),
        ({"normalization": ["NFC"]}, "normalization ['NFC'] is not known"),
        ({"byte_fallback": True}, "unknown key 'byte_fallback'; known: format, ignore_merges"),
        ({"version": 2}, "version 2 is not readable here, only 1"),
        ({"version": True}, "version True is not readable here"),
        ({"type": "words"}, "it holds a tokenizer of type 'words', not 'bpe'"),
    ],
)
def test_contradictions_are_refused_by_what_is_wrong(good, tmp_path, changes, problem):
    content = json.loads((good / "saved").read_text(encoding="utf-8"))
    for key, value in changes.items():
        merging = isinstance(value, dict) and isinstance(content.get(key), dict)
        content[key] = {**content[key], **value} if merging else value
    path = tmp_path / "tested"
    path.write_text(json.dumps(content), encoding="utf-8")
    if problem is None:
        assert BPETokenizer.load(path).decode([0]) == "\x00"
        return
    before = time.perf_counter()
    with pytest.raises(ValueError, match="tested: ") as caught:
        BPETokenizer.load(path)
    assert problem in str(caught.value)
    assert time.perf_counter() - before < SECONDS


def test_merges_may_stand_in_any_order_and_twice():
    """A merge may use what a later merge makes: ranks say which of the possible merges goes first."""
    tokens = [bytes([value]) for value in range(256)] + [b"ab", b"abc"]
    merges = [(b"ab", b"c"), (b"a", b"b"), (b"a", b"b")]
    ours = BPETokenizer(dict(enumerate(tokens)), merges)
    assert ours.encode("abcab") == [257, 256]
    assert ours.unreachable() == []


def test_a_merge_cannot_use_its_own_product():
    """A product is longer than its parts, unless a part is empty."""
    tokens = [bytes([value]) for value in range(256)]
    for merge in ((b"a", b""), (b"", b"a"), (b"", b"")):
        with pytest.raises(ValueError, match=r"merge 0 .*: b'' is not in the vocabulary"):
            BPETokenizer(dict(enumerate(tokens)), [merge])


def test_an_error_inside_a_file_names_it_once(tmp_path):
    with (
        pytest.raises(ValueError, match=r"^x\.json: not a readable tokenizer file: bad\.$"),
        saved_problem("x.json"),
    ):
        raise ValueError("bad.")
    with pytest.raises(ValueError, match=r"^[^:]*none: no such file\.$"):
        read_saved(tmp_path / "none")


def test_a_byte_order_mark_and_windows_line_ends_are_read(good, tmp_path):
    for kind, read in READERS.items():
        for name in ("good_vocab.json", "good_merges.txt"):
            (tmp_path / name).write_bytes((good / name).read_bytes())
        path = tmp_path / "tested"
        path.write_bytes(b"\xef\xbb\xbf" + (good / kind).read_bytes().replace(b"\n", b"\r\n"))
        assert read(path).merges == read(good / kind).merges, kind


EDIT = st.tuples(
    st.sampled_from(["replace", "insert", "delete", "repeat", "cut"]),
    st.floats(0, 1, exclude_max=True),
    st.one_of(
        st.binary(min_size=1, max_size=6),
        st.sampled_from(
            [b"[", b"{", b'"', b"9" * 30, b"NaN", b"-", b"null", b"\xef\xbb\xbf", b"\r", b" ", b"\n\n", b"e9"]
        ),
    ),
)


def edit(data, edits):
    for what, where, piece in edits:
        place = int(where * len(data))
        if what == "replace":
            data = data[:place] + piece + data[place + len(piece) :]
        elif what == "insert":
            data = data[:place] + piece + data[place:]
        elif what == "delete":
            data = data[:place] + data[place + len(piece) :]
        elif what == "repeat":
            data = data[:place] + data[max(0, place - 40) :]
        else:
            data = data[:place]
    return data


@pytest.mark.parametrize("kind", READERS)
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=st.lists(EDIT, min_size=1, max_size=4))
@example(edits=[("cut", 0.0, b"x")])
def test_a_changed_file_works_or_is_a_value_error(good, tmp_path, kind, edits):
    for name in ("good_vocab.json", "good_merges.txt"):
        if not (tmp_path / name).exists():
            (tmp_path / name).write_bytes((good / name).read_bytes())
    path = tmp_path / "tested"
    path.write_bytes(edit((good / kind).read_bytes(), edits))
    loaded = read_or_refuse(READERS[kind], path)
    if loaded is None:
        return
    text = "the cat \u00e9 <|endoftext|>\x00"
    assert loaded.decode(loaded.encode_ordinary(text)) == text
    assert set(loaded.unreachable()) <= set(loaded.vocab)


VALUE = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-2, 400), st.just(10**30), st.floats(), st.text(max_size=3),
        st.sampled_from(["BPE", "NFC", "ByteLevel", "Split", "Sequence", "\ud800", "\u0120t"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["saved", "vocab", "huggingface", "any"])
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_changed_values_work_or_are_a_value_error(good, tmp_path, kind, data):
    if not (tmp_path / "good_merges.txt").exists():
        (tmp_path / "good_merges.txt").write_bytes((good / "good_merges.txt").read_bytes())
    content = json.loads((good / kind).read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        inner = content
        while True:
            keys = list(range(len(inner))) if isinstance(inner, list) else list(inner)
            if not keys:
                break
            key = data.draw(st.sampled_from(keys[:40]))
            if isinstance(inner[key], list | dict) and inner[key] and data.draw(st.booleans()):
                inner = inner[key]
                continue
            if data.draw(st.booleans()):
                inner[key] = data.draw(VALUE)
            else:
                del inner[key]
            break
    path = tmp_path / "tested"
    path.write_text(json.dumps(content), encoding="utf-8")
    loaded = read_or_refuse(READERS[kind], path)
    if loaded is None:
        return
    assert loaded.decode(loaded.encode_ordinary("the cat \u00e9 \x00")) == "the cat \u00e9 \x00"


@pytest.mark.parametrize("kind", ["merges", "saved", "huggingface"])
def test_a_vocabulary_works_without_any_one_of_its_merges(good, tmp_path, kind):
    """What the lost merge made is then unreachable, or with vocab.json alone a special token."""
    (tmp_path / "good_vocab.json").write_bytes((good / "good_vocab.json").read_bytes())
    text = (good / kind).read_text(encoding="utf-8")
    table = {} if kind == "merges" else json.loads(text)
    inner = table.get("model", table)
    merges = text.splitlines(keepends=True)[1:] if kind == "merges" else inner["merges"]
    for place in range(len(merges)):
        fewer = merges[:place] + merges[place + 1 :]
        if kind != "merges":
            inner["merges"] = fewer
        path = tmp_path / "tested"
        path.write_text("".join(fewer) if kind == "merges" else json.dumps(table), encoding="utf-8")
        loaded = READERS[kind](path)
        assert loaded.unreachable() or len(loaded.special_tokens) > 1
        assert loaded.decode(loaded.encode_ordinary(CORPUS[0])) == CORPUS[0]
