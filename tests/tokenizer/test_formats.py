"""Files: what was saved loads equal; hostile or damaged files are errors that name the file."""

import json
import random

import pytest

from scratchlm.tokenizer import FILE_NAME, TOKENIZERS, load_tokenizer
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.formats import from_printable, load_gpt2, save_gpt2, to_printable


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(
        ["the cat \u00e9t\u00e9 " * 9],
        vocab_size=266,
        special_tokens=("<|endoftext|>", "<|\u00e9 x|>"),
        pattern="o200k",
    )


def test_printable_characters_stand_for_all_bytes():
    every = bytes(range(256))
    assert from_printable(to_printable(every)) == every
    assert to_printable(b" the\n") == "\u0120the\u010a"
    with pytest.raises(ValueError, match="stands for no byte"):
        from_printable("a b")


@pytest.mark.parametrize("name", ["bpe", "chars"])
def test_every_tokenizer_of_the_family_saves_and_loads_equal(tmp_path, name):
    trained = TOKENIZERS.build(name, **({"vocab_size": 270} if name == "bpe" else {})).train(
        ["the cat \u00e9 " * 9]
    )
    path = tmp_path / "folder" / FILE_NAME
    trained.save(path)
    loaded = load_tokenizer(path.parent)
    assert type(loaded) is type(trained)
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.special_tokens == trained.special_tokens
    text = "the \u00e9 cat, ^"
    assert loaded.encode(text) == trained.encode(text)
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


def test_bpe_files_keep_everything(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "t.json")
    loaded = load_tokenizer(tmp_path / "t.json")
    assert loaded.vocab == tokenizer.vocab
    assert loaded.merges == tokenizer.merges
    assert loaded.pattern == "o200k"
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "t.json").read_bytes()


def test_fingerprints_differ_when_ids_can_differ(tokenizer):
    other = train_bpe(
        ["the cat \u00e9t\u00e9 " * 9],
        vocab_size=265,
        special_tokens=("<|endoftext|>", "<|\u00e9 x|>"),
        pattern="o200k",
    )
    assert other.fingerprint != tokenizer.fingerprint
    assert len(tokenizer.fingerprint) == 64


def test_gpt2_files_load_equal(tmp_path, tokenizer):
    save_gpt2(tokenizer, tmp_path / "vocab.json", tmp_path / "merges.txt")
    for names in (None, list(tokenizer.special_tokens)):
        loaded = load_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt", names, pattern="o200k")
        assert loaded.fingerprint == tokenizer.fingerprint
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8").startswith("#version: 0.2\n")


def test_gpt2s_own_files_come_out_as_they_went_in(shared_data, tmp_path):
    folder = shared_data / "tokenizer" / "vocab"
    gpt2 = load_gpt2(folder / "gpt2_encoder.json", folder / "gpt2_vocab.bpe")
    assert gpt2.vocab_size == 50257
    assert gpt2.special_tokens == {"<|endoftext|>": 50256}
    save_gpt2(gpt2, tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert (tmp_path / "merges.txt").read_bytes() == (folder / "gpt2_vocab.bpe").read_bytes()
    ours, theirs = (
        json.loads(path.read_text()) for path in (tmp_path / "vocab.json", folder / "gpt2_encoder.json")
    )
    assert ours == theirs


def test_the_tokenizers_library_reads_our_gpt2_files(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    ours = train_bpe(["It's the cat, they're there 12 \u00e9t\u00e9\n\n " * 9], vocab_size=300)
    save_gpt2(ours, tmp_path / "vocab.json", tmp_path / "merges.txt")
    theirs = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in ("the cat's  there\n\n \u00e9 x", "unseen words 123!"):
        assert theirs.encode(text).ids == ours.encode(text)


HEAD = '{"format": "scratchlm.tokenizer", "version": 1, "type": '
HOSTILE = {
    "empty": "",
    "truncated": '{"format": "scratchlm.tokenizer", "version": 1, "ty',
    "list": "[1, 2]",
    "number": "7",
    "other": '{"format": "something"}',
    "deep": "[" * 200_000,
    "type": HEAD + '"words"}',
    "newer": '{"format": "scratchlm.tokenizer", "version": 99, "type": "bpe"}',
    "bare": HEAD + '"bpe"}',
    "chars": HEAD + '"chars", "characters": 5}',
    "rule": HEAD + '"chars", "characters": "a", "unknown": 1}',
    "norule": HEAD + '"chars", "characters": "a"}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_an_error_that_names_it(tmp_path, kind):
    path = tmp_path / "hostile.json"
    path.write_text(HOSTILE[kind], encoding="utf-8")
    with pytest.raises(ValueError, match=r"hostile\.json: "):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab", {"a": -1}),
        ("vocab", {"a": True}),
        ("vocab", {"a b": 3}),
        ("vocab", []),
        ("merges", ["ab"]),
        ("merges", [["a", "b"]]),
        ("merges", ["\u0120 zzz"]),
        ("pattern", 3),
        ("pattern", "gpt9"),
        ("special_tokens", {"": 1}),
        ("special_tokens", {"x": 2**40}),
        ("special_tokens", {"<|a|>": 200}),
        ("special_tokens", None),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_file(tmp_path, tokenizer, key, value):
    path = tmp_path / "wrong.json"
    tokenizer.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"wrong\.json: "):
        load_tokenizer(path)


def test_truncation_anywhere_is_an_error_that_names_the_file(tmp_path, tokenizer):
    path = tmp_path / "cut.json"
    tokenizer.save(path)
    whole = path.read_bytes()
    rng = random.Random(9)
    for size in [0, 1, len(whole) - 3, *(rng.randrange(len(whole) - 3) for _ in range(30))]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.json: "):
            load_tokenizer(path)


def test_missing_and_unreadable_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        load_tokenizer(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"tokenizer\.scratchlm\.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.json: not UTF-8"):
        load_tokenizer(tmp_path / "binary.json")


def test_gpt2_files_that_do_not_belong_together_are_errors(tmp_path, tokenizer):
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    save_gpt2(tokenizer, vocab, merges)
    merges.write_text("#version: 0.2\nz z\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json: .*do these merges belong to it"):
        load_gpt2(vocab, merges)
    merges.write_text("onlyone\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"merges\.txt: .*not two tokens"):
        load_gpt2(vocab, merges)


def test_nothing_is_left_behind_when_saving_fails(tmp_path, tokenizer):
    (tmp_path / "t.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        tokenizer.save(tmp_path / "t.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
