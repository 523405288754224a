"""Batches: flat, cut and padded, equal to one text after the other for any number of threads."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.tokenizer import END_OF_TEXT
from scratchlm.tokenizer.batches import Documents, grouped, map_in_order, pad_documents, truncate_documents
from scratchlm.tokenizer.bpe_train import train_bpe

TEXTS = [
    "the cat",
    "",
    "\ud800 \u4e2d\U0001f600",
    "<|endoftext|>",
    *(f"the end of {n}\r\n" * n for n in range(40)),
]
LENGTHS = st.lists(st.integers(0, 9), max_size=12)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the cat at the end of it " * 9], vocab_size=280, special_tokens=(END_OF_TEXT,))


def documents_of(lengths):
    rows = [np.arange(100 * number, 100 * number + length) for number, length in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Documents(np.concatenate([np.empty(0), *rows]).astype(np.uint16), offsets), rows


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_documents_are_the_texts_one_after_the_other(tokenizer, num_threads, monkeypatch):
    monkeypatch.setattr(grouped, "__defaults__", (50,))
    expected = [tokenizer.encode_ordinary(text) for text in TEXTS]
    ids, offsets = tokenizer.encode_documents(iter(TEXTS), num_threads=num_threads)
    assert ids.tolist() == [id for row in expected for id in row]
    assert offsets.tolist() == [0, *np.cumsum([len(row) for row in expected])]
    assert (ids.dtype, offsets.dtype) == (np.uint16, np.int64)
    batch = tokenizer.encode_batch(TEXTS, num_threads=num_threads)
    assert [row.tolist() for row in batch] == expected
    cut = tokenizer.encode_batch(TEXTS, num_threads=num_threads, truncation=3)
    assert [row.tolist() for row in cut] == [row[:3] for row in expected]


def test_no_texts_are_no_documents(tokenizer):
    for num_threads in (1, 2):
        ids, offsets = tokenizer.encode_documents([], num_threads=num_threads)
        assert (ids.tolist(), offsets.tolist()) == ([], [0])
        assert tokenizer.encode_batch([], num_threads=num_threads) == []
        assert tokenizer.encode_padded([], num_threads=num_threads).ids.shape == (0, 0)
    assert tokenizer.encode_documents([""]).offsets.tolist() == [0, 0]


def test_one_string_is_no_list_of_texts(tokenizer):
    with pytest.raises(ValueError, match=r"texts is one string; pass a list of texts: \[text\]"):
        tokenizer.encode_batch("the cat")
    with pytest.raises(ValueError, match="num_threads=0: must be at least 1"):
        tokenizer.encode_documents(["the"], num_threads=0)


@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(lengths=LENGTHS, more=st.integers(0, 3))
def test_rows_hold_the_texts_and_nothing_else(side, lengths, more):
    documents, rows = documents_of(lengths)
    longest = max(lengths, default=0)
    for length in ("longest", longest + more):
        width = longest if length == "longest" else length
        padded = pad_documents(documents, length=length, padding_id=7, side=side)
        assert padded.ids.shape == padded.mask.shape == (len(lengths), width)
        assert padded.lengths.tolist() == lengths
        for ids, mask, row in zip(padded.ids, padded.mask, rows, strict=True):
            filling, full = [7] * (width - len(row)), [*row]
            assert ids.tolist() == (full + filling if side == "right" else filling + full)
            assert ids[mask].tolist() == full
            assert int(mask.sum()) == len(row)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lengths=LENGTHS, num_tokens=st.integers(0, 10))
def test_truncation_keeps_the_first_ids(lengths, num_tokens):
    documents, rows = documents_of(lengths)
    cut = truncate_documents(documents, num_tokens)
    assert [ids.tolist() for ids in cut.arrays()] == [row[:num_tokens].tolist() for row in rows]


def test_padding_is_the_end_of_text_id_unless_said_otherwise(tokenizer):
    assert tokenizer.encode_padded(["the", ""]).ids[1].tolist() == [tokenizer.end_of_text_id]
    assert tokenizer.encode_padded(["the", ""], padding_id=9, side="left", length=2).ids[1].tolist() == [9, 9]
    padded = tokenizer.encode_padded(TEXTS, length=4, truncation=4, num_threads=2)
    assert padded.ids.shape == (len(TEXTS), 4)


def test_what_does_not_fit_into_rows_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"length=2: text 1 has 7 tokens; pass truncation=2 to cut it"):
        tokenizer.encode_padded(["a", "abcdefg"], length=2)
    with pytest.raises(ValueError, match="truncation=-1: the number of tokens to keep must be at least 0"):
        tokenizer.encode_padded(["a"], truncation=-1)
    with pytest.raises(ValueError, match="padding_id=70000: no id of this tokenizer"):
        tokenizer.encode_padded(["a"], padding_id=70_000)
    with pytest.raises(ValueError, match=f"padding_id={tokenizer.vocab_size}: no id of this tokenizer"):
        tokenizer.encode_padded(["a"], padding_id=tokenizer.vocab_size)
    with pytest.raises(ValueError, match="length=-3: must be a number of ids, at least 0, or 'longest'"):
        tokenizer.encode_padded([""], length=-3)
    with pytest.raises(ValueError, match="side='up': must be 'left' or 'right'"):
        tokenizer.encode_padded(["a"], side="up")


def test_results_come_in_order_and_not_too_many_wait():
    running, most, lock = 0, 0, threading.Lock()

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number * number

    taken = []
    items = (taken.append(number) or number for number in range(30))
    results = map_in_order(work, items, num_threads=3, num_waiting=4)
    assert next(results) == 0
    assert len(taken) <= 5
    assert [0, *results] == [number * number for number in range(30)]
    assert 1 < most <= 3


def test_an_error_comes_out_where_its_result_would():
    def work(number):
        if number == 2:
            raise ValueError("two")
        return number

    results = map_in_order(work, range(9), num_threads=2, num_waiting=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
