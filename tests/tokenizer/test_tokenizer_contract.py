"""What every tokenizer of the family must do, whatever it is called."""

import numpy as np
import pytest

from scratchlm.tokenizer import END_OF_TEXT, FILE_NAME, TOKENIZERS, load_tokenizer
from scratchlm.tokenizer.base import Tokenizer
from scratchlm.tokenizer.compiled.vector import PADDING

TEXTS = ["One day the cat sat. It's the cat's day \u00e9t\u00e9!\n" * 20, f"the dog{END_OF_TEXT}the end", ""]
NAMES = TOKENIZERS.names()


@pytest.fixture(scope="module", params=NAMES)
def trained(request):
    wanted = {"vocab_size": 300} if "vocab_size" in TOKENIZERS.settings(request.param) else {}
    return request.param, TOKENIZERS.build(request.param, **wanted).train(TEXTS)


def test_the_trainer_is_documented_and_names_its_tokenizer():
    for name in NAMES:
        trainer = TOKENIZERS.get(name)
        assert issubclass(trainer.tokenizer, Tokenizer), name
        for setting in TOKENIZERS.settings(name):
            assert f"{setting}:" in trainer.__init__.__doc__, f"{name}.{setting}"


def test_text_of_known_words_round_trips(trained):
    _, tokenizer = trained
    for text in ("the cat sat.", "", "It's the day\n", TEXTS[0]):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= id < tokenizer.vocab_size for id in ids)
        assert tokenizer.encode_to_numpy(text).tolist() == ids


def test_every_id_stands_for_bytes(trained):
    _, tokenizer = trained
    for id in range(tokenizer.vocab_size):
        assert tokenizer.token_bytes(id)
    with pytest.raises(ValueError, match="not in this tokenizer's vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def test_special_tokens_are_one_id_only_where_allowed(trained):
    _, tokenizer = trained
    text = f"the cat{END_OF_TEXT}the dog"
    with pytest.raises(ValueError, match=r"special token '<\|endoftext\|>'"):
        tokenizer.encode(text)
    ids = tokenizer.encode(text, allowed_special="all")
    place = ids.index(tokenizer.end_of_text_id)
    assert ids[:place] == tokenizer.encode("the cat")
    assert ids[place + 1 :] == tokenizer.encode("the dog")
    assert tokenizer.end_of_text_id not in tokenizer.encode_ordinary(text)


def test_chunks_batches_and_the_whole_agree(trained):
    _, tokenizer = trained
    text = TEXTS[0] + " the  \n\n day"
    ids = tokenizer.encode(text)
    for size in (1, 7, 1000):
        chunks = (text[i : i + size] for i in range(0, len(text), size))
        assert list(tokenizer.encode_iterable(chunks)) == ids
    for num_threads in (1, 2):
        batch = tokenizer.encode_batch([text, "", "the"], num_threads=num_threads)
        assert [array.tolist() for array in batch] == [ids, [], tokenizer.encode("the")]


def test_ids_one_at_a_time_make_the_same_text(trained):
    _, tokenizer = trained
    decoder = tokenizer.stream_decoder()
    shown = [decoder.push(id) for id in tokenizer.encode(TEXTS[0])]
    assert "".join([*shown, decoder.flush()]) == TEXTS[0]


def test_a_saved_tokenizer_is_the_same(trained, tmp_path):
    name, tokenizer = trained
    tokenizer.save(tmp_path / FILE_NAME)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer) is TOKENIZERS.get(name).tokenizer
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special_tokens == tokenizer.special_tokens
    assert loaded.vocab_size == tokenizer.vocab_size
    text = TEXTS[0] + "^ unseen \u00fc \U0001f600"
    assert np.array_equal(loaded.encode_to_numpy(text), tokenizer.encode_to_numpy(text))


def test_training_twice_gives_the_same(trained):
    name, tokenizer = trained
    wanted = {"vocab_size": 300} if "vocab_size" in TOKENIZERS.settings(name) else {}
    assert TOKENIZERS.build(name, **wanted).train(TEXTS).fingerprint == tokenizer.fingerprint


def test_training_tells_how_far_it_is(trained):
    name, _ = trained
    wanted = {"vocab_size": 300} if "vocab_size" in TOKENIZERS.settings(name) else {}
    heard = []
    TOKENIZERS.build(name, **wanted).train(TEXTS, progress=lambda *report: heard.append(report))
    assert heard
    assert all(isinstance(phase, str) and done >= 0 for phase, done, _ in heard)


@pytest.mark.parametrize("seed", range(3))
def test_spans_of_a_text_in_memory_are_encoded_each_for_itself(trained, seed):
    _, tokenizer = trained
    random = np.random.default_rng(seed)
    pieces = ["the cat", " ", "\n", "\u00e9t\u00e9", END_OF_TEXT, "x" * 9, " day's", "\u4e2d", *TEXTS[:1]]
    texts = ["".join(random.choice(pieces, random.integers(0, 40))) for _ in range(300)]
    between = [b"<", b"", b" the", "\u00e9".encode()]
    data, firsts, stops = bytearray(), [], []
    for text in texts:
        data += between[random.integers(4)]
        firsts.append(len(data))
        data += text.encode()
        stops.append(len(data))
    room = np.frombuffer(data + b"ing " * PADDING, np.uint8).copy()
    spans = np.array(firsts), np.array(stops)
    ids, offsets = tokenizer.encode_spans(room, *spans, behind=tokenizer.end_of_text_id)
    expected = [[*tokenizer.encode_ordinary(text), tokenizer.end_of_text_id] for text in texts]
    assert ids.tolist() == [id for row in expected for id in row]
    assert offsets.tolist() == [0, *np.cumsum([len(row) for row in expected])]
    assert ids.dtype == tokenizer.dtype
    assert len(data) > 2**18, "several windows"
