"""Ids equal those of tiktoken, tokenizers and transformers: three real vocabularies, random and real text."""

import json
import random
import unicodedata
from typing import NamedTuple

import pytest

from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.formats import load_gpt2, load_tiktoken, save_huggingface, save_tiktoken
from scratchlm.tokenizer.formats.tiktoken_ranks import read_ranks

ALPHABET = " \n\r\t'0189aBzsretvlmd.!/-\u017f\u00a0\u0301\u00e9\u00bd\u0663\u01c5"
ALPHABET += "\u4e2d\u3002\U0001f600\x00\x1c\u200b"
PLANES = (0x80, 0x800, 0x3000, 0x10000, 0x110000)
FILES = {"gpt2": "r50k_base", "cl100k": "cl100k_base", "o200k": "o200k_base"}
ENCODINGS = {"gpt2": "gpt2", "cl100k": "cl100k_base", "o200k": "o200k_base"}


class Real(NamedTuple):
    ours: BPETokenizer
    ranks: dict[bytes, int]
    description: dict
    pattern: str


@pytest.fixture(scope="module", params=FILES)
def real(shared_data, request):
    folder = shared_data / "tokenizer" / "vocab"
    description = json.loads((folder / "patterns.json").read_text("utf-8"))[ENCODINGS[request.param]]
    path = folder / f"{FILES[request.param]}.tiktoken"
    ours = load_tiktoken(path, pattern=request.param, special_tokens=description["special_tokens"])
    return Real(ours, read_ranks(path), description, request.param)


@pytest.fixture(scope="module")
def tiktokens(real):
    tiktoken = pytest.importorskip("tiktoken")
    return tiktoken.Encoding(
        real.pattern,
        pat_str=real.description["pat_str"],
        mergeable_ranks=real.ranks,
        special_tokens=real.description["special_tokens"],
    )


@pytest.fixture(scope="module")
def hugging_face_folder(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    save_huggingface(real.ours, folder)
    return folder


@pytest.fixture(scope="module")
def written(hugging_face_folder):
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(hugging_face_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def strings(real, shared_data):
    """10,000: random tokens joined, unusual characters, any characters, naughty strings."""
    rng = random.Random(5)
    tokens = list(real.ours.vocab.values())

    def code():
        """A character; the programs differ in which of those that are new in Unicode they know."""
        found = chr(rng.randrange(rng.choice(PLANES)))
        return found if unicodedata.category(found) not in ("Cn", "Cs") else "?"

    naughty = json.loads((shared_data / "tokenizer" / "blns.json").read_text("utf-8"))
    joined = [
        b"".join(rng.choices(tokens, k=rng.randint(1, 8))).decode("utf-8", "replace") for _ in range(4000)
    ]
    unusual = ["".join(rng.choices(ALPHABET, k=rng.randint(1, 30))) for _ in range(3000)]
    anything = ["".join(code() for _ in range(rng.randint(1, 12))) for _ in range(10_000)]
    return [*naughty, *joined, *unusual, *anything][:10_000]


def test_ids_equal_tiktokens_on_ten_thousand_strings(real, tiktokens, strings):
    wrong = [text for text in strings if real.ours.encode_ordinary(text) != tiktokens.encode_ordinary(text)]
    assert wrong == []


def test_ids_equal_tokenizers_on_ten_thousand_strings(real, written, strings):
    theirs = written.encode_batch(strings)
    wrong = [
        text
        for text, found in zip(strings, theirs, strict=True)
        if real.ours.encode(text, allowed_special="all") != found.ids
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "name",
    [
        "code_mbpp.jsonl", "emoji-test.txt", "gutenberg_french.txt", "japanese_wagahai.txt", "udhr.jsonl",
        "utf8_sequence_0x10ffff.txt", "xquad_paragraphs.jsonl", "blns.json",
    ],
)  # fmt: skip
def test_ids_equal_tiktokens_on_real_text(real, tiktokens, shared_data, name):
    text = (shared_data / "tokenizer" / name).read_bytes()[:700_000].decode("utf-8", "ignore")
    assert real.ours.encode_ordinary(text) == tiktokens.encode_ordinary(text)


def test_ids_equal_the_golden_ids(real, shared_data):
    name = f"strings_{ENCODINGS[real.pattern]}.jsonl"
    lines = (shared_data / "tokenizer" / "golden" / name).read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert len(rows) > 100
    assert [row["text"] for row in rows if real.ours.encode_ordinary(row["text"]) != row["ids"]] == []
    assert [row["text"] for row in rows if real.ours.decode(row["ids"]) != row["text"]] == []


@pytest.mark.parametrize("name", ["mixed", "utf8"])
def test_ids_equal_kitokens(real, shared_data, name):
    if real.pattern == "gpt2":
        pytest.skip("no ids of this vocabulary there")
    folder = shared_data / "tokenizer" / "kitoken"
    text = (folder / f"{name}_input.txt").read_bytes().decode("utf-8")
    listed = (folder / f"{name}_tokens_{FILES[real.pattern]}.txt").read_text("utf-8").splitlines()
    texts = text.split("\n") if name == "mixed" else [text]
    assert len(listed) in (len(texts), len(texts) - 1)
    for line, ids in zip(texts, listed, strict=False):
        assert real.ours.encode_ordinary(line) == [int(id) for id in ids.split(",")]


def test_a_file_of_ranks_comes_out_as_it_went_in(real, shared_data, tmp_path):
    save_tiktoken(real.ours, tmp_path / "ranks.tiktoken")
    original = shared_data / "tokenizer" / "vocab" / f"{FILES[real.pattern]}.tiktoken"
    assert (tmp_path / "ranks.tiktoken").read_bytes() == original.read_bytes()


def test_a_written_folder_loads_equal(real, hugging_face_folder):
    loaded = BPETokenizer.from_file(hugging_face_folder)
    assert loaded.vocab == real.ours.vocab
    assert loaded.merges == real.ours.merges
    assert (loaded.pattern, loaded.special_tokens) == (real.pattern, real.ours.special_tokens)


def test_every_entry_of_the_real_vocabularies_is_reachable(real):
    assert real.ours.unreachable() == []


def test_transformers_loads_what_we_write(real, hugging_face_folder):
    transformers = pytest.importorskip("transformers")
    text = "Hello  world's\n\n 12345 <|endoftext|> \u00e9t\u00e9 , '!"
    expected = real.ours.encode(text, allowed_special="all")
    for theirs in (
        transformers.AutoTokenizer.from_pretrained(str(hugging_face_folder)),
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(hugging_face_folder / "tokenizer.json")),
    ):
        assert theirs.encode(text) == expected
        assert theirs.decode(expected) == text


def test_gpt2s_two_files_and_its_ranks_are_one_tokenizer(shared_data):
    folder = shared_data / "tokenizer" / "vocab"
    files = load_gpt2(folder / "gpt2_encoder.json", folder / "gpt2_vocab.bpe")
    ranks = load_tiktoken(
        folder / "r50k_base.tiktoken", pattern="gpt2", special_tokens={"<|endoftext|>": 50256}
    )
    assert files.fingerprint == ranks.fingerprint


def test_ids_equal_llama_cpps(shared_data):
    folder = shared_data / "tokenizer"
    gpt2 = load_gpt2(folder / "vocab" / "gpt2_encoder.json", folder / "vocab" / "gpt2_vocab.bpe")
    texts = (folder / "llamacpp" / "ggml-vocab-gpt-2.gguf.inp").read_bytes().decode("utf-8")
    expected = (folder / "llamacpp" / "ggml-vocab-gpt-2.gguf.out").read_text("utf-8").split("\n")
    found = [gpt2.encode_ordinary(text) for text in texts.split("\n__ggml_vocab_test__\n")]
    assert len(found) > 40
    for ids, line in zip(found, expected, strict=False):
        assert ids == [int(id) for id in line.split()]
