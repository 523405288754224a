"""read_any: a file or folder of any format is recognised by its content, or refused by name."""

import pytest

from scratchlm.tokenizer import FILE_NAME
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import train_bpe_reference
from scratchlm.tokenizer.chars import CharTokenizer
from scratchlm.tokenizer.formats import read_any, save_gpt2, save_huggingface, save_tiktoken

CORPUS = ["the cat \u00e9t\u00e9 sat there 12\n\n " * 9]


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer(*train_bpe_reference(CORPUS, vocab_size=290, special_tokens=()), ["<|endoftext|>"])


@pytest.fixture
def plain(tokenizer):
    return BPETokenizer(*train_bpe_reference(CORPUS, vocab_size=290, special_tokens=()))


def test_every_file_is_recognised_by_its_content(tmp_path, tokenizer, plain):
    tokenizer.save(tmp_path / "a")
    save_huggingface(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "b.json")
    (tmp_path / "tokenizer_config.json").unlink()
    save_gpt2(tokenizer, tmp_path / "c.json", tmp_path / "merges.txt")
    save_tiktoken(plain, tmp_path / "d")
    for name in ("a", "b.json", "c.json"):
        assert read_any(tmp_path / name).fingerprint == tokenizer.fingerprint, name
    assert read_any(tmp_path / "d", pattern="gpt2").fingerprint == plain.fingerprint
    named = read_any(tmp_path / "d", pattern="gpt2", special_tokens=tokenizer.special_tokens)
    assert named.fingerprint == tokenizer.fingerprint


def test_the_merges_lead_to_their_vocabulary(tmp_path, tokenizer):
    for number, names in enumerate((("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))):
        folder = tmp_path / str(number)
        save_gpt2(tokenizer, *(folder / name for name in names))
        for path in (folder, *(folder / name for name in names)):
            assert read_any(path).fingerprint == tokenizer.fingerprint
            assert read_any(path, pattern="qwen2").pattern == "qwen2"


def test_a_folder_is_searched_in_a_fixed_order(tmp_path, tokenizer, plain):
    with pytest.raises(
        ValueError, match=r"a folder with no tokenizer; expected our own JSON, tokenizer\.json"
    ):
        read_any(tmp_path)
    save_tiktoken(plain, tmp_path / "x.tiktoken")
    assert read_any(tmp_path, pattern="cl100k").pattern == "cl100k"
    save_tiktoken(plain, tmp_path / "y.tiktoken")
    with pytest.raises(ValueError, match="a folder with several files of ranks; name one"):
        read_any(tmp_path, pattern="cl100k")
    others = {
        pattern: BPETokenizer(plain.vocab, plain.merges, pattern=pattern) for pattern in ("qwen2", "o200k")
    }
    save_gpt2(plain, tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert read_any(tmp_path).pattern == "gpt2"
    save_huggingface(others["qwen2"], tmp_path)
    assert read_any(tmp_path).pattern == "qwen2"
    others["o200k"].save(tmp_path / FILE_NAME)
    assert read_any(tmp_path).pattern == "o200k"


def test_other_types_of_our_own_file_are_read_too(tmp_path):
    CharTokenizer("abc").save(tmp_path / "chars.json")
    assert isinstance(read_any(tmp_path / "chars.json"), CharTokenizer)
    with pytest.raises(ValueError, match=r"chars\.json: holds a CharTokenizer, no BPE tokenizer"):
        BPETokenizer.from_file(tmp_path / "chars.json")


def test_what_a_file_says_cannot_be_overruled(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "own.json")
    assert read_any(tmp_path / "own.json", pattern="gpt2", special_tokens={"<|endoftext|>": 274})
    with pytest.raises(ValueError, match=r"own\.json: its split pattern is 'gpt2', not 'o200k'"):
        read_any(tmp_path / "own.json", pattern="o200k")
    with pytest.raises(ValueError, match=r"own\.json: its special tokens are .* not \{'<x>': 3\}"):
        read_any(tmp_path / "own.json", special_tokens={"<x>": 3})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no tokenizer's file; expected our own JSON"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"\x7fELF" + bytes(range(256)), "no tokenizer's file"),
        (b"Once upon a time", "no tokenizer's file"),
        (b"{}", "JSON, but no tokenizer's"),
        (b"[]", "holds a list; expected a JSON table"),
        (b'{"a": "b"}', "JSON, but no tokenizer's"),
        (b'{"a": 1}', r"a vocabulary, but no merges\.txt or vocab\.bpe beside it"),
        (b'{"model": 3}', r"a vocabulary, but no merges\.txt"),
        (b'{"model": {}}', r"model\.vocab=None: expected a table"),
        (b'{"format": "zip"}', 'it has no "format": "scratchlm.tokenizer"'),
        (b"IQ== 0\n", "does not name its split pattern"),
        (b"\xff\xfe{\x00}\x00", "no tokenizer's file"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path, content, problem):
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"thing: .*{problem}"):
        read_any(path)
    with pytest.raises(ValueError, match="nothing: no such file"):
        read_any(tmp_path / "nothing")
