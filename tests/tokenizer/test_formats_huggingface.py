"""tokenizer.json and tokenizer_config.json: what others write is read alike or refused by field."""

import json
import random
import unicodedata

import pytest

from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_reference import train_bpe_reference
from scratchlm.tokenizer.formats import load_huggingface, save_huggingface
from scratchlm.tokenizer.formats.huggingface import tokenizer_table
from scratchlm.tokenizer.formats.split_patterns import known_pattern
from scratchlm.tokenizer.pretokenize import PATTERNS

CORPUS = ["It's the cat, they're THERE 12 123456 \u00e9t\u00e9 e\u0301te\u0301 \n\n  x (foo) --- !!/\n" * 9]
TEXTS = [
    *CORPUS,
    "the  cat \n \n",
    "don't DON'T 99999",
    "\u00e9 e\u0301 \u0958 \u212b",
    "a\t b\r\n",
    "",
    "\n  ",
]
SPECIALS = ("<|endoftext|>", "<|\u00e9 x|>")
TIKTOKEN_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def make(pattern="gpt2", **settings):
    vocab, merges = train_bpe_reference(CORPUS, vocab_size=330, special_tokens=SPECIALS, pattern=pattern)
    return BPETokenizer(vocab, merges, SPECIALS, pattern=pattern, **settings)


@pytest.fixture(scope="module")
def cl100k():
    return make("cl100k")


def write(folder, table, config=None):
    (folder / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def random_texts(number=400):
    rng = random.Random(8)
    parts = [
        *"  \n\r\t'/0189aBzsS.!-\u00e9\u0301\u0663\u4e2d\u00a0",
        "the",
        "'re",
        "THE",
        "123",
        "   ",
        "\r\n",
        "||",
    ]
    return ["".join(rng.choices(parts, k=rng.randint(1, 25))) for _ in range(number)]


@pytest.mark.parametrize("normalization", [None, "NFC"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_tokenizers_library_reads_what_we_write(tmp_path, pattern, normalization):
    tokenizers = pytest.importorskip("tokenizers")
    ours = make(pattern, normalization=normalization)
    save_huggingface(ours, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, *random_texts(), "a<|\u00e9 x|>b<|endoftext|>\n"]:
        assert theirs.encode(text).ids == ours.encode(text, allowed_special="all"), text
        assert theirs.decode(theirs.encode(text).ids, skip_special_tokens=False) == ours.decode(
            ours.encode(text, allowed_special="all")
        )
    loaded = load_huggingface(tmp_path)
    if pattern != "llama3":  # it is cl100k, and its file does not tell them apart
        assert loaded.fingerprint == ours.fingerprint
    assert loaded.encode(CORPUS[0]) == ours.encode(CORPUS[0])


def test_we_read_what_the_tokenizers_library_trains(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    theirs.train_from_iterator(CORPUS, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_huggingface(tmp_path / "tokenizer.json")
    assert ours.special_tokens == {"<|endoftext|>": 0}
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids


def test_ignore_merges_means_the_same_there(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    vocab, merges = train_bpe_reference(CORPUS, vocab_size=300, special_tokens=())
    unmade = {len(vocab): b" unmade", len(vocab) + 1: b"thecat", len(vocab) + 2: "\u00e9\u00e8".encode()}
    ours = BPETokenizer({**vocab, **unmade}, merges, ignore_merges=True)
    save_huggingface(ours, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [
        "an unmade thing",
        "thecat thecats thecat",
        "\u00e9\u00e8 \u00e9\u00e8",
        *TEXTS,
        *random_texts(100),
    ]
    for text in texts:
        assert theirs.encode(text).ids == ours.encode(text)
    assert min(unmade) in ours.encode("an unmade thing")
    assert min(unmade) not in BPETokenizer({**vocab, **unmade}, merges).encode("an unmade thing")
    assert load_huggingface(tmp_path).fingerprint == ours.fingerprint


def test_merges_of_the_old_style_and_minimal_models_are_read(tmp_path, cl100k):
    table = tokenizer_table(cl100k)
    table["model"]["merges"] = [" ".join(pair) for pair in table["model"]["merges"]]
    assert load_huggingface(write(tmp_path, table)).fingerprint == cl100k.fingerprint
    table["model"] = {key: table["model"][key] for key in ("vocab", "merges")}
    for key in ("post_processor", "decoder", "normalizer", "truncation"):
        del table[key]
    assert load_huggingface(write(tmp_path, table)).fingerprint == cl100k.fingerprint


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        *((expression, "cl100k" if name == "llama3" else name) for name, expression in PATTERNS.items()),
        (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "gpt2"),
        (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", "gpt2"),
        (TIKTOKEN_CL100K, "cl100k"),
        (r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)", "superbpe"),
    ],
)
def test_spellings_of_a_pattern_split_alike(tmp_path, cl100k, expression, name):
    tokenizers = pytest.importorskip("tokenizers")
    table = tokenizer_table(cl100k)
    table["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = expression
    ours = load_huggingface(write(tmp_path, table))
    assert ours.pattern == name
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, *random_texts()]:
        assert theirs.encode(text).ids == ours.encode(text), text


@pytest.mark.parametrize(
    "expression",
    [
        "(",
        "",
        r"\s+",
        PATTERNS["gpt2"] + "|x",
        PATTERNS["cl100k"].replace("{1,3}", "{1,2}"),
        PATTERNS["cl100k"].replace("{1,3}", "{1,3}+"),
        PATTERNS["cl100k"].replace(r"\s+(?!\S)", r"\s++(?!\S)"),
        PATTERNS["cl100k"].replace(r"\s*[\r\n]+", r"\s*+[\r\n]+"),
        PATTERNS["qwen2"].replace(r"\p{L}+", r"[\p{L}\p{M}]+"),
    ],
)
def test_other_patterns_are_refused(tmp_path, cl100k, expression):
    table = tokenizer_table(cl100k)
    table["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = expression
    assert known_pattern(expression) is None
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*pre_tokenizer=.*our patterns \(gpt2, cl100k"):
        load_huggingface(write(tmp_path, table))


def test_blanks_behind_a_last_newline_are_refused_where_they_could_differ(tmp_path, cl100k):
    table = tokenizer_table(cl100k)
    table["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = TIKTOKEN_CL100K
    table["model"]["vocab"]["\u010a\u0120"] = 400
    table["model"]["merges"].append(["\u010a", "\u0120"])
    with pytest.raises(ValueError, match="a newline and the blanks after it are one piece at the end"):
        load_huggingface(write(tmp_path, table))


def test_matches_alone_come_to_the_same_where_they_cover_the_text(tmp_path, cl100k):
    table = tokenizer_table(cl100k)
    split = table["pre_tokenizer"]["pretokenizers"][0]
    split |= {"behavior": "Removed", "invert": True}
    assert load_huggingface(write(tmp_path, table)).fingerprint == cl100k.fingerprint
    split["pattern"]["Regex"] = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)"
    with pytest.raises(ValueError, match="pre_tokenizer="):
        load_huggingface(write(tmp_path, table))


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
TOKEN = {"id": 0, "content": "<|endoftext|>"}
OTHER = {"id": 1, "content": "<|\u00e9 x|>"}
SEQUENCE = {"type": "Sequence"}


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("model", None, "model=None: expected a table"),
        ("model.type", "Unigram", r"model\.type='Unigram': only BPE"),
        ("model.type", ["BPE"], r"model\.type=\['BPE'\]: only BPE"),
        ("model.vocab", [], r"model\.vocab=\[\]: expected a table"),
        ("model.vocab.!", -1, r"model\.vocab: -1 is no id"),
        ("model.vocab.!", 1.5, r"model\.vocab: 1\.5 is no id"),
        ("model.vocab.!", 10**18, r"model\.vocab: 1000000000000000000 is no id"),
        ("model.vocab.!", 40, r"model\.vocab: two tokens have the same id 40"),
        ("model.vocab.a b", 500, "character ' ' stands for no byte"),
        ("model.merges", None, r"model\.merges must be a list"),
        ("model.merges", [["a"]], r"model\.merges: \['a'\] is no pair"),
        ("model.merges", ["a b", ["a", "b"]], r"model\.merges: 'a b' is no pair"),
        ("model.merges", ["ab"], "merge 'ab' is not two tokens"),
        ("model.merges", [["q", "z"]], "b'qz' is not in the vocabulary"),
        ("model.dropout", 0.1, r"model\.dropout=0\.1"),
        ("model.continuing_subword_prefix", "##", r"model\.continuing_subword_prefix='##'"),
        ("model.end_of_word_suffix", "</w>", r"model\.end_of_word_suffix='</w>'"),
        ("model.byte_fallback", True, r"model\.byte_fallback=True"),
        ("model.ignore_merges", "yes", r"model\.ignore_merges must be true or false"),
        ("normalizer", {"type": "NFKC"}, r"normalizer=.*only null and NFC"),
        ("normalizer", "NFC", r"normalizer='NFC': expected a table"),
        ("pre_tokenizer", None, "pre_tokenizer=None: only ByteLevel"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer=.*only ByteLevel"),
        ("pre_tokenizer", BYTE_LEVEL, "pre_tokenizer=.*only ByteLevel"),
        ("pre_tokenizer", {"type": "ByteLevel"}, "add_prefix_space=true"),
        ("pre_tokenizer", {**SEQUENCE, "pretokenizers": [{"type": "Digits"}, BYTE_LEVEL]}, "only ByteLevel"),
        ("pre_tokenizer", {**SEQUENCE, "pretokenizers": 3}, r"pre_tokenizer\.pretokenizers must be a list"),
        ("decoder", {"type": "Metaspace"}, "decoder=.*only ByteLevel"),
        ("post_processor", {"type": "Surprise"}, "post_processor=.*not known"),
        ("added_tokens", {}, "added_tokens must be a list"),
        ("added_tokens", [3], r"added_tokens\[0\]=3: expected a table"),
        ("added_tokens", [{"id": 0}], r"added_tokens\[0\]=.*has no content"),
        ("added_tokens", [{**TOKEN, "id": "0"}], r"added_tokens\[0\]=.*and id"),
        ("added_tokens", [{**TOKEN, "id": 99}], "'<.endoftext.>' has the id 99, but in model.vocab 0"),
        ("added_tokens", [TOKEN, {**TOKEN, "id": 1}], "has two ids, 0 and 1"),
        ("added_tokens", [{**TOKEN, "lstrip": True}], r"added_tokens\[0\]\.lstrip=true"),
        ("added_tokens", [{**TOKEN, "single_word": True}], r"added_tokens\[0\]\.single_word=true"),
        ("added_tokens", [OTHER, {"id": 700, "content": ""}], "at least one character"),
        ("added_tokens", [OTHER, {"id": 700, "content": "\ud800"}], "must be valid text"),
        ("added_tokens", [{"id": 700, "content": "t"}], "700, but in model.vocab"),
        ("added_tokens", [{"id": 40, "content": "<|new|>"}], "two tokens have the same id 40"),
    ],
)  # fmt: skip
def test_what_we_would_do_otherwise_is_refused_by_field(tmp_path, cl100k, place, value, problem):
    table = tokenizer_table(cl100k)
    *above, last = place.split(".")
    inner = table
    for key in above:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{problem}"):
        load_huggingface(write(tmp_path, table))


def test_tokens_that_are_not_special_there_are_special_here(tmp_path, cl100k):
    table = tokenizer_table(cl100k)
    table["added_tokens"].append({"id": 900, "content": "<tool>", "special": False, "normalized": True})
    loaded = load_huggingface(write(tmp_path, table))
    assert loaded.special_tokens["<tool>"] == 900
    with pytest.raises(ValueError, match="special token '<tool>'"):
        loaded.encode("a<tool>")
    assert loaded.encode("a<tool>", allowed_special="all")[-1] == 900
    table["normalizer"] = {"type": "NFC"}
    table["added_tokens"][-1]["content"] = "<e\u0301>"
    with pytest.raises(ValueError, match=r"added_tokens\[2\]\.normalized=true"):
        load_huggingface(write(tmp_path, table))


def test_the_configuration_adds_tokens_and_must_not_contradict(tmp_path, cl100k):
    save_huggingface(cl100k, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert config["eos_token"] == "<|endoftext|>"
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["added_tokens_decoder"]["0"]["content"] == "<|endoftext|>"
    config["added_tokens_decoder"]["901"] = {"content": "<|new|>", "special": True}
    loaded = load_huggingface(write(tmp_path, tokenizer_table(cl100k), config))
    assert loaded.special_tokens == {**cl100k.special_tokens, "<|new|>": 901}
    for id, content, problem in (
        ("5", "<|endoftext|>", "has the id 5, but in"),
        ("-1", "<|x|>", "'-1' is no id"),
        ("9" * 5000, "<|x|>", "is no id"),
    ):
        config["added_tokens_decoder"] = {id: {"content": content}}
        with pytest.raises(ValueError, match=problem):
            load_huggingface(write(tmp_path, tokenizer_table(cl100k), config))
    config["added_tokens_decoder"] = 3
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: .*added_tokens_decoder=3"):
        load_huggingface(write(tmp_path, tokenizer_table(cl100k), config))


def test_roles_lengths_and_a_template_are_written(tmp_path, cl100k):
    roles = {"bos_token": "<|endoftext|>", "pad_token": "<|\u00e9 x|>"}
    save_huggingface(cl100k, tmp_path, roles=roles, model_max_length=512, chat_template="{{ messages }}")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert {key: config[key] for key in roles} == roles
    assert "eos_token" not in config
    assert (config["model_max_length"], config["chat_template"]) == (512, "{{ messages }}")
    with pytest.raises(
        ValueError, match="role of a special token 'end' is not known; choose one of bos_token"
    ):
        save_huggingface(cl100k, tmp_path, roles={"end": "<|endoftext|>"})
    with pytest.raises(ValueError, match="eos_token '<end>' is not known; choose one of"):
        save_huggingface(cl100k, tmp_path, roles={"eos_token": "<end>"})


def test_transformers_knows_the_roles(tmp_path, cl100k):
    transformers = pytest.importorskip("transformers")
    save_huggingface(cl100k, tmp_path, roles={"bos_token": "<|endoftext|>", "pad_token": "<|\u00e9 x|>"})
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert (theirs.bos_token_id, theirs.pad_token_id) == (0, 1)
    for text in [*TEXTS, "a<|\u00e9 x|>b"]:
        ids = cl100k.encode(text, allowed_special="all")
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == cl100k.decode(ids)


def test_what_only_adds_to_a_text_is_left_out_with_a_warning(tmp_path, cl100k, caplog):
    table = tokenizer_table(cl100k)
    table["post_processor"] = {"type": "TemplateProcessing", "single": []}
    table["truncation"] = {"max_length": 4}
    loaded = load_huggingface(write(tmp_path, table))
    assert loaded.fingerprint == cl100k.fingerprint
    assert "TemplateProcessing, truncation: not part of encoding here, left out" in caplog.text


def test_a_special_token_that_reads_like_another_token_is_not_written(tmp_path):
    vocab, merges = train_bpe_reference(CORPUS, vocab_size=300, special_tokens=())
    clash = BPETokenizer(vocab, merges, ["\u0120"])
    with pytest.raises(ValueError, match=r"special token '\u0120' reads like the printable form of another"):
        save_huggingface(clash, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_composing_is_part_of_encoding_and_of_streams():
    ours = make("qwen2", normalization="NFC")
    plain = make("qwen2")
    for text in TEXTS:
        composed = unicodedata.normalize("NFC", text)
        assert ours.encode(text) == plain.encode(composed)
        assert ours.count_tokens(text) == len(plain.encode(composed))
        assert ours.decode(ours.encode(text)) == composed
    rng = random.Random(2)
    for _ in range(40):
        text = "".join(
            rng.choices(
                ["e", "\u0301", "\u0327", " ", ".", "\u0958", "\u1100", "\u1161", "=", "\u0338", "\n"], k=8000
            )
        )
        chunks = [text[i : i + 700] for i in range(0, len(text), 700)] * 4
        assert list(ours.encode_iterable(iter(chunks))) == ours.encode(text * 4)
