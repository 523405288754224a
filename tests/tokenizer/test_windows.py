"""Windows, segments and ranges give the pieces of the whole text, wherever it is cut."""

import itertools
import random

import numpy as np
import pytest
import regex

from scratchlm.tokenizer.pretokenize import PATTERNS, SCANNED_PATTERNS, pretokenize
from scratchlm.tokenizer.sources import BytesSource, FileSource
from scratchlm.tokenizer.windows import GOES_ON, TEXT_ENDS, Splitter, ranges

SPECIALS = ["<|endoftext|>", "<|end|>", "<|endoftext|><|end|>"]
PARTS = ["the", " cat", "s'", "'re", " 42", "7", "\n", "\n\n", "  ", " ", "\t", "!", "/", "\u00e9",
         "\u4f60\u597d", "\U0001f600", "\u0301", "\u00a0", "\u017f", ". ", "Ab", "...", "\r\n"]  # fmt: skip


def expected(text, pattern):
    """Pieces by the expression itself, and the special token after each segment."""
    found = []
    specials = sorted(SPECIALS, key=len, reverse=True)
    cuts = regex.split("(" + "|".join(map(regex.escape, specials)) + ")", text)
    for segment, special in zip(cuts[::2], [*cuts[1::2], None], strict=True):
        found += [piece.encode() for piece in pretokenize(segment, pattern)]
        if special is not None:
            found.append(SPECIALS.index(special))
    return found


def gathered(windows):
    """Pieces and special tokens of windows, in the same form."""
    found = []
    for window in windows:
        for number, special in enumerate(window.specials):
            for j in range(window.bounds[number], window.bounds[number + 1] - 1):
                found.append(window.text[window.starts[j] : window.starts[j + 1]].tobytes())
            if special >= 0:
                found.append(int(special))
    return found


def random_text(seed, length=400):
    draw = random.Random(seed)
    return "".join(draw.choice([*PARTS, *SPECIALS] if draw.random() < 0.1 else PARTS) for _ in range(length))


@pytest.mark.parametrize("pattern", SCANNED_PATTERNS)
@pytest.mark.parametrize("window_bytes", [64, 100, 1000, 1 << 18])
def test_windows_of_any_size_give_the_pieces_of_the_whole(pattern, window_bytes):
    for seed in range(20):
        text = random_text(seed)
        splitter = Splitter(pattern, SPECIALS, window_bytes=window_bytes)
        windows = splitter.windows(BytesSource(text.encode()))
        assert gathered(windows) == expected(text, pattern), (seed, window_bytes)


@pytest.mark.parametrize("pattern", SCANNED_PATTERNS)
def test_ranges_give_the_pieces_of_the_whole(pattern):
    for seed in range(20):
        text = random_text(seed)
        source = BytesSource(text.encode())
        for num_bytes in (50, 333, 5000):
            cut = list(ranges(source, pattern, SPECIALS, num_bytes))
            assert cut[0][0] == 0
            assert cut[-1][1] == source.size
            assert all(one[1] == two[0] for one, two in itertools.pairwise(cut))
            found = []
            for start, stop in cut:
                splitter = Splitter(pattern, SPECIALS, window_bytes=128)
                found += gathered(splitter.windows(source, start, stop))
            assert found == expected(text, pattern), (seed, num_bytes)


def test_ranges_of_one_byte_do_not_look_before_the_text():
    assert list(ranges(BytesSource(b"ab cd"), "gpt2", num_bytes=1)) == [(0, 2), (2, 5)]


def test_windows_cover_the_source_once_and_say_where_it_ends():
    text = random_text(5).encode()
    position = 0
    for window in Splitter("gpt2", SPECIALS, window_bytes=100).windows(BytesSource(text)):
        assert window.position == position
        position += window.num_bytes
        assert window.specials[-1] == (TEXT_ENDS if position == len(text) else GOES_ON)
    assert position == len(text)


def test_texts_in_a_batch_are_split_each_for_itself():
    texts = [random_text(seed, length=seed % 7) for seed in range(200)] + [random_text(1, 3000), "", "a"]
    splitter = Splitter("gpt2", SPECIALS, window_bytes=2000)
    ends, found, current = 0, [], []
    for window in splitter.batches([text.encode() for text in texts]):
        for number, special in enumerate(window.specials):
            for j in range(window.bounds[number], window.bounds[number + 1] - 1):
                current.append(window.text[window.starts[j] : window.starts[j + 1]].tobytes())
            if special >= 0:
                current.append(int(special))
            elif special == TEXT_ENDS:
                ends += 1
                found.append(current)
                current = []
    assert found == [expected(text, "gpt2") for text in texts]
    assert ends == len(texts)


def test_a_special_token_made_by_joining_two_texts_is_none():
    splitter = Splitter("gpt2", SPECIALS)
    assert gathered(splitter.batches([b"a<|endof", b"text|>b", b"<|end|>"])) == [
        b"a", b"<|", b"endof", b"text", b"|>", b"b", 1
    ]  # fmt: skip


def test_bytes_that_are_no_utf8_are_refused_replaced_or_kept():
    text = b"good \xff\xfe text \xe4\xbd<|end|>\xc3\xa9"
    source = BytesSource(text)
    with pytest.raises(
        ValueError, match=r"the text: not UTF-8 text at byte 5; convert it, or choose errors="
    ):
        list(Splitter("gpt2", SPECIALS, errors="strict").windows(source))
    replaced = gathered(Splitter("gpt2", SPECIALS, errors="replace").windows(source))
    assert replaced == expected(text.decode("utf-8", "replace"), "gpt2")
    kept = gathered(Splitter("gpt2", SPECIALS, errors="lossless").windows(source))
    assert b"".join(piece for piece in kept if isinstance(piece, bytes)) == text.replace(b"<|end|>", b"")
    with pytest.raises(ValueError, match="not UTF-8 text at byte 0"):
        list(Splitter("gpt2", errors="strict").batches([b"fine", b"\xff"]))


@pytest.mark.parametrize("errors", ["replace", "lossless"])
def test_damaged_text_in_small_windows_is_that_in_one(errors):
    draw = random.Random(3)
    data = bytearray(random_text(9, 800).encode())
    for _ in range(60):
        data[draw.randrange(len(data))] = draw.randrange(256)
    whole = gathered(Splitter("gpt2", SPECIALS, errors=errors).windows(BytesSource(bytes(data))))
    small = Splitter("gpt2", SPECIALS, errors=errors, window_bytes=90).windows(BytesSource(bytes(data)))
    assert gathered(small) == whole


def test_a_file_is_read_in_windows_and_must_not_shrink(tmp_path):
    path = tmp_path / "text.txt"
    text = random_text(4, 2000)
    path.write_text(text, encoding="utf-8", newline="")
    with FileSource(path) as source:
        windows = Splitter("gpt2", SPECIALS, window_bytes=500).windows(source)
        assert gathered(windows) == expected(text, "gpt2")
        path.write_bytes(b"short")
        with pytest.raises(ValueError, match="became shorter while it was read"):
            list(Splitter("gpt2", SPECIALS).windows(source))
    with pytest.raises(ValueError, match="no such file"):
        FileSource(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="no such file"):
        FileSource(tmp_path)


def test_an_empty_text_has_no_windows():
    assert list(Splitter("gpt2").windows(BytesSource(b""))) == []
    assert list(ranges(BytesSource(b""), "gpt2")) == []


def test_a_piece_longer_than_a_window_stays_whole():
    text = "x" * 1000 + " y"
    found = gathered(Splitter("gpt2", window_bytes=64).windows(BytesSource(text.encode())))
    assert found == [b"x" * 1000, b" y"]


def test_a_pattern_without_a_scanner_is_split_by_its_expression(monkeypatch):
    monkeypatch.setitem(PATTERNS, "words", r"\w+|\W+")
    text = "one two, three"
    splitter = Splitter("words", SPECIALS, window_bytes=64)
    found = gathered(splitter.windows(BytesSource((text * 30).encode())))
    assert found == [piece.encode() for piece in regex.findall(r"\w+|\W+", text * 30)]
    assert list(ranges(BytesSource(text.encode()), "words", (), 5)) == [(0, len(text))]


def test_starts_are_positions_in_the_window():
    (window,) = Splitter("gpt2").windows(BytesSource(b"one two"))
    assert window.starts.tolist() == [0, 3, 7]
    assert window.bounds.tolist() == [0, 3]
    assert window.starts.dtype == np.int32


def test_a_file_is_read_alike_without_preadv(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    text = random_text(6, 2000)
    path.write_text(text, encoding="utf-8", newline="")
    monkeypatch.delattr("os.preadv", raising=False)
    with FileSource(path) as source:
        windows = Splitter("gpt2", SPECIALS, window_bytes=500).windows(source)
        assert gathered(windows) == expected(text, "gpt2")


@pytest.mark.parametrize("errors", ["strict", "lossless"])
def test_superbpe_is_cut_at_numbers(errors):
    for seed in range(30):
        text = random_text(seed, 600)
        data = text.encode() if errors == "strict" else text.encode().replace(b"\xbd", b"")
        splitter = Splitter("superbpe", SPECIALS, errors=errors, window_bytes=200)
        windows = 0
        found = []
        for window in splitter.windows(BytesSource(data)):
            windows += 1
            found += gathered([window])
        whole = gathered(Splitter("superbpe", SPECIALS, errors=errors).windows(BytesSource(data)))
        assert found == whole, seed
        assert windows > 3


def test_a_text_that_cannot_be_cut_is_refused_before_positions_overflow(monkeypatch):
    monkeypatch.setattr("scratchlm.tokenizer.windows._LONGEST_WINDOW", 300)
    with pytest.raises(ValueError, match="the text: no place to cut in the 400 bytes from byte 0"):
        list(Splitter("gpt2", window_bytes=100).windows(BytesSource(b"a" * 1000)))
