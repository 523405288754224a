import gzip
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from scratchlm.data import reading
from scratchlm.data.corpora import Chunk
from scratchlm.data.reading import MAX_CHUNK, kind_of, read_documents, safe_end, split_documents

SEPARATOR = "<|endoftext|>"


def read(path, **settings):
    return list(read_documents(path, **{"separator": SEPARATOR, "text_key": "text", **settings}))


def whole(chunks):
    """Chunks joined to documents."""
    documents, text = [], ""
    for chunk in chunks:
        text += chunk.text
        if chunk.ends_document:
            documents.append(text)
            text = ""
    assert text == ""
    return documents


@pytest.fixture
def write(tmp_path):
    def write(content, name="text.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def test_separators_take_one_line_break_on_each_side_with_them(write):
    path = write(f"one\n{SEPARATOR}\ntwo\n\n{SEPARATOR}three{SEPARATOR}\r\n four\r\n{SEPARATOR}\n")
    assert read(path) == [Chunk(text, True) for text in ("one", "two\n", "three", " four")]


def test_a_file_without_separators_is_one_document_to_the_last_byte(write):
    assert read(write("\nline\n\n")) == [Chunk("\nline\n\n", True)]


def test_blank_documents_are_left_out(write):
    assert read(write(f"{SEPARATOR}\n \n{SEPARATOR}a{SEPARATOR}{SEPARATOR}")) == [Chunk("a", True)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 13, 100])
def test_documents_do_not_depend_on_how_the_text_arrives(monkeypatch, size):
    monkeypatch.setattr(reading, "MAX_CHUNK", 30)
    text = f"{'word and ' * 20}\n{SEPARATOR}\nshort{SEPARATOR}\n\n{'x' * 100}\n{SEPARATOR}{'a.b, ' * 10}"
    blocks = [text[start : start + size] for start in range(0, len(text), size)]
    expected = list(split_documents(iter([text]), SEPARATOR))
    assert list(split_documents(iter(blocks), SEPARATOR)) == expected
    assert whole(expected) == ["word and " * 20, "short", "\n" + "x" * 100, "a.b, " * 10]
    assert max(len(chunk.text) for chunk in expected) <= 30


def test_long_documents_are_cut_where_the_real_tokenizer_joins_nothing(monkeypatch, shared_data):
    from scratchlm.tokenizer import TOKENIZERS

    text = (shared_data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:60_000]
    tokenizer = TOKENIZERS.build("bpe", vocab_size=400).train([text])
    monkeypatch.setattr(reading, "MAX_CHUNK", 137)
    chunks = list(split_documents(iter([text]), ""))
    assert len(chunks) > 400
    ids = [token for chunk in chunks for token in tokenizer.encode_ordinary(chunk.text)]
    assert ids == tokenizer.encode_ordinary(text)


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k"])
@pytest.mark.parametrize(
    "text",
    [
        "It's 12,345.67!  Really?\n\n(yes)",
        "\u6211\u662f\u5b66\u751f\u3002\u4f60\u597d\uff0c\u4e16\u754c",
        "caf\u00e9 na\u00efve, na\u00ef\u0308ve",
    ],
)
def test_every_safe_place_is_a_border_of_the_split_patterns(pattern, text):
    import regex

    from scratchlm.tokenizer.pretokenize import PATTERNS

    splitter = regex.compile(PATTERNS[pattern])
    borders = {match.end() for match in splitter.finditer(text * 3)}
    for limit in range(1, len(text) * 3):
        end = safe_end(text * 3, limit)
        assert end == limit or end in borders
        if end != limit:
            assert [
                *splitter.findall((text * 3)[:end]),
                *splitter.findall((text * 3)[end:]),
            ] == splitter.findall(text * 3)


def test_safe_end_is_before_the_mark_after_the_last_word():
    assert safe_end("one two, three", 10) == 7
    assert safe_end("one two, three", 3) == 3
    assert safe_end("aaaaaaaa", 5) == 5


def test_a_single_long_line_streams_in_bounded_memory(tmp_path):
    path = tmp_path / "line.txt"
    path.write_bytes(b"abcdefg " * 650_000)  # 5.2 MB
    path_without_spaces = tmp_path / "solid.txt"
    path_without_spaces.write_bytes(b"a" * 5_200_000)
    for file in (path, path_without_spaces):
        tracemalloc.start()
        length = 0
        for chunk in read_documents(file, separator=SEPARATOR, text_key="text"):
            assert len(chunk.text) <= MAX_CHUNK
            length += len(chunk.text)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert length == 5_200_000
        assert peak < 10 * 2**20, f"{file.name}: {peak}"


def test_jsonl_lines_are_documents(write):
    lines = [{"text": "one"}, {"text": "\u00e9\n"}, {"text": " "}, {"other": 1, "text": SEPARATOR}]
    path = write("\n\n".join(json.dumps(line) for line in lines), "a.jsonl")
    assert whole(read(path)) == ["one", "\u00e9\n", SEPARATOR]


def test_parquet_rows_are_documents(tmp_path):
    table = pyarrow.table({"text": ["one", None, "two" * MAX_CHUNK], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert whole(read(tmp_path / "a.parquet")) == ["one", "two" * MAX_CHUNK]
    with pytest.raises(ValueError, match=r"a.parquet: no column 'story'; set text_key to one of: text, n"):
        read(tmp_path / "a.parquet", text_key="story")
    with pytest.raises(ValueError, match=r"row 1, column 'n': a int, not text"):
        read(tmp_path / "a.parquet", text_key="n")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.gz", "a.txt.zst", "a.zst"])
def test_compressed_text_reads_like_plain_text(write, name):
    pack = gzip.compress if name.endswith(".gz") else zstandard.compress
    half = f"one{SEPARATOR}" * 2_000
    path = write(pack(half.encode()) + pack(b"two"), name)  # two members, as `cat a.gz b.gz` makes
    assert whole(read(path)) == ["one"] * 2_000 + ["two"]


def test_compressed_jsonl_reads_like_jsonl(write):
    assert whole(read(write(gzip.compress(b'{"text": "one"}\n'), "a.jsonl.gz"))) == ["one"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_cut_off_or_wrong_archive_is_named(write, name):
    pack = gzip.compress if name.endswith(".gz") else zstandard.compress
    with pytest.raises(ValueError, match=rf"{name}: .*cut off"):
        read(write(pack(bytes(range(32, 120)) * 500)[:-6], name))
    with pytest.raises(ValueError, match=rf"{name}: damaged"):
        read(write(b"no archive at all", name))


def test_a_highly_compressed_file_is_read_in_bounded_memory(write):
    path = write(zstandard.compress(b"a" * 50_000_000), "a.zst")
    tracemalloc.start()
    assert sum(len(chunk.text) for chunk in read_documents(path, separator="", text_key="")) == 50_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"caf\xe9 au lait", r"byte 3 \(0xe9\) is not UTF-8"),
        (b"a" * (2**20 - 1) + "\u00e9".encode() + b"\xff", r"byte 1048577 \(0xff\) is not UTF-8"),
        (b"a" * (2**20 - 1) + b"\xe2\x82", r"byte 1048575 \(0xe2\) is not UTF-8: unexpected end of data"),
        (b"ab\0cd", "byte 2 is NUL: a binary file, not text"),
        (b"a" * 2**20 + b"b\0", "byte 1048577 is NUL"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "byte 8 is NUL: a binary file"),
        ("text".encode("utf-16"), "UTF-16, not UTF-8; convert it: iconv"),
    ],
)
def test_what_is_no_utf8_text_is_refused_with_its_place(write, content, place):
    with pytest.raises(ValueError, match=rf"text.txt: {place}") as error:
        read(write(content))
    assert "\n" not in str(error.value)


def test_errors_replace_reads_them_anyway(write):
    assert read(write(b"caf\xe9\0!"), errors="replace") == [Chunk("caf\ufffd\ufffd!", True)]
    path = write(b'{"text": "a\\u0000b\\ud800"}\n{"text": "\xe9"}', "a.jsonl")
    assert whole(read(path, errors="replace")) == ["a\ufffdb\ufffd", "\ufffd"]


def test_a_byte_order_mark_is_not_text(write):
    assert read(write(b"\xef\xbb\xbftext")) == [Chunk("text", True)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("3", "line 2: a int; each line must be an object with a 'text'"),
        ('{"story": "a"}', "line 2: no key 'text'; set text_key to one of: story"),
        ('{"text": 3}', "line 2, key 'text': a int, not text"),
        ('{"text": "a\\u0000"}', r"line 2, key 'text': U\+0000 at character 1 is not text"),
        ('{"text": "\\ud800"}', r"line 2, key 'text': U\+D800 at character 0 is not text"),
        (b'{"text": "\xff"}', "line 2, byte 10: not UTF-8"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(write, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(ValueError, match=rf"a.jsonl: {message}"):
        read(write(b'{"text": "good"}\n' + line, "a.jsonl"))


def test_an_endless_line_of_jsonl_is_refused(write, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE", 1_000)
    with pytest.raises(ValueError, match=r"a.jsonl: a line of more than 1,000 bytes"):
        read(write(b"x" * 2_000, "a.jsonl"))


def test_what_is_no_file_is_named(tmp_path, write):
    with pytest.raises(ValueError, match=r"nothing.txt: no such file or folder"):
        read(tmp_path / "nothing.txt")
    with pytest.raises(ValueError, match="not a regular file"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"a.parquet: damaged or not a .parquet file"):
        read(write("text", "a.parquet"))
    with pytest.raises(ValueError, match=r"compressed inside"):
        read(write("text", "a.parquet.gz"))


def test_the_suffix_says_what_a_file_holds():
    from pathlib import Path

    kinds = {
        "a.txt": ".txt",
        "a.jsonl.zst": ".jsonl",
        "b.md": ".txt",
        "c": ".txt",
        "d.gz": ".txt",
        "e.parquet": ".parquet",
    }
    assert {name: kind_of(Path(name)) for name in kinds} == kinds
