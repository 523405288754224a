"""Single stages: corpora, tokenizers, shards, help and doctor."""

import json
from pathlib import Path

import pytest

from scratchlm.data.shards import TokenDataset
from scratchlm.data.stories import generate_story
from scratchlm.tokenizer import load_tokenizer


@pytest.fixture
def tokenizer(cli, stories):
    assert cli("tokenizer", "train", stories, "--vocab-size", 300, "-o", "t.json").code == 0
    return "t.json"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# corpus


def test_corpora_are_listed_with_their_licences(cli):
    found = cli("corpus", "list")
    assert found.code == 0
    for name in ("stories", "files", "tinystories", "wikitext-2", "wikitext-103", "openwebtext-sample"):
        assert name in found.out
    assert "CDLA-Sharing-1.0" in found.out


def test_a_corpus_shows_its_documents(cli):
    found = cli("corpus", "show", "stories", "seed=5", "-n", "2")
    assert generate_story(5, 0) in found.out
    assert generate_story(5, 1) in found.out
    assert "nats" in found.out


def test_a_corpus_that_is_not_here_tells_how_to_fetch_it(cli, tmp_path):
    found = cli("corpus", "show", "tinystories", f"folder={tmp_path}")
    assert found.code == 0
    assert "https://" in found.out
    assert "scratchlm corpus fetch tinystories" in found.out


def test_nothing_has_to_be_fetched_for_the_stories(cli):
    assert "nothing to download" in cli("corpus", "fetch", "stories").out


def test_stories_are_written_as_text_and_as_lines(cli, tmp_path):
    assert cli("corpus", "write", "stories", "-n", 3, "--seed", 1, "a.txt").code == 0
    assert cli("corpus", "write", "stories", "-n", 3, "--seed", 1, "a.jsonl").code == 0
    expected = [generate_story(1, index) for index in range(3)]
    text = (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert text == "\n<|endoftext|>\n".join(expected) + "\n"
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == expected


def test_files_are_written_with_a_limit(cli, stories, tmp_path):
    assert cli("corpus", "write", stories, "-n", 2, "b.txt").code == 0
    assert (tmp_path / "b.txt").read_text(encoding="utf-8").count("<|endoftext|>") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "storys"], "unknown corpus 'storys'. Did you mean 'stories'?"),
        (["show", "gone.txt"], "gone.txt: no such file or folder; check the path."),
        (["show", "stories", "sed=1"], "Did you mean 'seed'?"),
        (["show", "stories", "num_train=0"], "num_train=0 must be between 1"),
        (["write", "stories"], "name the corpus and then the file to write"),
        (["write", "stories", "."], "is a folder; give the name of the file"),
        (["fetch", "tinystoris"], "Did you mean 'tinystories'?"),
        (["write", "stories", "-n", "2", "/proc/none/a.txt"], "/proc/none: no such file or directory"),
    ],
)
def test_a_mistake_with_a_corpus_is_one_line(cli, tmp_path, words, message):
    assert message in cli("corpus", *words).error
    assert names(tmp_path) == []


def test_a_full_disk_is_named_and_leaves_nothing(cli, tmp_path, monkeypatch):
    from scratchlm import runtime

    def fill(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime, "flush", fill)
    error = cli("corpus", "write", "stories", "-n", 3, "a.txt").error
    assert error.startswith("error: a.txt: no space left on device; free some space")
    assert names(tmp_path) == []


def test_seed_is_refused_where_nothing_is_generated(cli, stories):
    error = cli("corpus", "write", stories, "--seed", 1, "c.txt").error
    assert "is not generated; leave --seed out" in error


# tokenizer


def test_a_tokenizer_encodes_and_decodes(cli, tokenizer):
    text = "Once upon a time, Gr\u00fc\u00dfe"
    ids = cli("tokenizer", "encode", tokenizer, text).out
    assert [int(word) for word in ids.split()] == load_tokenizer(Path(tokenizer)).encode_ordinary(text)
    assert cli("tokenizer", "decode", tokenizer, *ids.split()).out == text + "\n"
    assert cli("tokenizer", "decode", tokenizer, ",".join(ids.split())).out == text + "\n"


def test_special_tokens_are_plain_text_unless_allowed(cli, tokenizer):
    plain = cli("tokenizer", "encode", tokenizer, "a<|endoftext|>").out.split()
    special = cli("tokenizer", "encode", tokenizer, "a<|endoftext|>", "--special").out.split()
    assert len(plain) > 2
    assert special[-1] == "0"
    assert len(special) == 2


def test_text_and_ids_come_from_files_and_pipes(cli, tokenizer, tmp_path, monkeypatch):
    import io
    import sys

    (tmp_path / "in.txt").write_text("the little dog", encoding="utf-8")
    ids = cli("tokenizer", "encode", tokenizer, "--file", "in.txt").out
    (tmp_path / "ids.txt").write_text(ids, encoding="utf-8")
    assert cli("tokenizer", "decode", tokenizer, "--file", "ids.txt").out == "the little dog\n"

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the little dog"), encoding="utf-8"))
    assert cli("tokenizer", "encode", tokenizer).out == ids


def test_inspect_shows_size_longest_tokens_and_pieces(cli, tokenizer):
    found = cli("tokenizer", "inspect", tokenizer, "the little dog").out
    assert "vocabulary       300" in found
    assert "<|endoftext|> = 0" in found
    assert "bytes per token" in found
    assert "longest tokens" in found
    assert found.splitlines()[-1].replace("|", "") == "the little dog"


def test_a_character_tokenizer_is_trained_by_name(cli, stories):
    assert cli("tokenizer", "train", stories, "--kind", "chars", "-o", "c.json").code == 0
    assert (
        cli("tokenizer", "decode", "c.json", *cli("tokenizer", "encode", "c.json", "the").out.split()).out
        == "the\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["encode", "gone.json", "x"],
            "gone.json: no such tokenizer; make one with: scratchlm tokenizer train",
        ),
        (["decode", "t.json", "x7"], "'x7' is no id; ids are whole numbers from 0 to 299."),
        (["decode", "t.json", "300"], "id 300 is not in this tokenizer's vocabulary (0 to 299)."),
        (["encode", "t.json", "x", "--file", "y"], "a text and --file were both given; leave one out."),
        (["encode", "t.json", "--file", "gone.txt"], "gone.txt: no such file or directory; check the path."),
        (["encode", "t.json", "--file", "bad.txt"], "bad.txt: byte 3 is not valid UTF-8"),
        (["encode", "stories.txt", "x"], "stories.txt"),
        (["train", "stories.txt", "--kind", "bqe"], "unknown tokenizer 'bqe'. Did you mean 'bpe'?"),
        (["train", "stories.txt", "--vocab-size", "200", "-o", "small.json"], "vocab_size=200 is too small"),
        (["train", "empty.txt", "-o", "empty.json"], "empty.txt"),
        (["train", "stories.txt", "-o", "."], "is a folder; give the name of a file with --output."),
    ],
)
def test_a_mistake_with_a_tokenizer_is_one_line(cli, tokenizer, tmp_path, words, message):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    (tmp_path / "empty.txt").write_bytes(b"")
    before = names(tmp_path)
    assert message in cli("tokenizer", *words).error
    assert names(tmp_path) == before


# data


def test_shards_are_prepared_and_shown(cli, stories, tokenizer, tmp_path):
    found = cli("data", "prepare", stories, "-t", tokenizer, "-o", "shards", "--workers", 2)
    assert found.code == 0
    assert "documents" in found.out
    assert "first ids" in found.out
    data = TokenDataset.open(tmp_path / "shards")
    shown = cli("data", "show", "shards", "-t", tokenizer, "--verify").out
    assert f"{data.num_tokens:,} tokens of uint16" in shown
    assert "every checksum is right" in shown
    assert generate_story(3, 0)[:40] in shown


def test_the_numbers_of_workers_chunks_and_queue_change_no_byte(cli, stories, tokenizer, tmp_path):
    for name, words in {"a": [1, 2**20, 8], "b": [3, 100, 1]}.items():
        options = zip(("--workers", "--chunk-size", "--queue-size"), words, strict=True)
        flat = [part for pair in options for part in pair]
        assert cli("data", "prepare", stories, "-t", tokenizer, "-o", name, *flat).code == 0
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b


def test_shards_of_another_tokenizer_are_refused(cli, stories, tokenizer):
    assert cli("data", "prepare", stories, "-t", tokenizer, "-o", "shards").code == 0
    assert cli("tokenizer", "train", stories, "--vocab-size", 270, "-o", "other.json").code == 0
    assert "these ids belong to tokenizer" in cli("data", "show", "shards", "-t", "other.json").error
    again = cli("data", "prepare", stories, "-t", "other.json", "-o", "shards")
    assert "these ids belong to tokenizer" in again.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "gone"], "gone: no token shards here"),
        (["prepare", "gone.txt", "-t", "t.json", "-o", "s"], "gone.txt: no such file or folder"),
        (["prepare", "stories", "-t", "gone.json", "-o", "s"], "gone.json: no such tokenizer"),
        (
            ["prepare", "stories", "-t", "t.json", "-o", "s", "--workers", "0"],
            "Invalid value for '--workers'",
        ),
    ],
)
def test_a_mistake_with_data_is_one_line(cli, tokenizer, tmp_path, words, message):
    before = names(tmp_path)
    assert message in cli("data", *words).error
    assert names(tmp_path) == before


# help and doctor


def test_help_lists_every_family(cli):
    found = cli("help").out
    for word in ("optimizer", "adamw", "schedule", "cosine", "position", "rope", "corpus", "stories"):
        assert word in found


@pytest.mark.parametrize("word", ["adamw", "optimizer.adamw", "optimizer"])
def test_help_shows_settings_from_the_signature(cli, word):
    found = cli("help", word).out
    assert "optimizer.name=adamw" in found
    line = next(line for line in found.splitlines() if line.strip().startswith("weight_decay"))
    assert "float" in line
    assert "0.1" in line


@pytest.mark.parametrize("word", ["distributed", "fsdp2", "distributed.fsdp2"])
def test_engines_are_called_as_their_setting_is(cli, word):
    found = cli("help", word).out
    assert "distributed=fsdp2" in found
    assert "shard_processes" in found


def test_help_shows_the_settings_of_a_section(cli):
    found = cli("help", "train").out
    assert "train.batch_tokens" in found
    assert "Tokens per optimizer step" in found
    assert "int | 'auto'" in found
    assert "model.d_model" in cli("help", "model").out


def test_help_tells_what_post_training_takes_as_it_is_written(cli):
    found = cli("help", "grpo").out
    assert "prompts_per_step" in found
    assert "loss.name=grpo" in found
    assert "grpo.name" not in found, "a file of its own, not a section"
    assert "[[rewards]] name=think" in cli("help", "think").out
    assert "data.name=alpaca" in cli("help", "alpaca").out
    assert "--tasks blimp" in cli("help", "blimp").out


def test_help_for_an_unknown_part_names_the_nearest(cli):
    assert "Did you mean 'adamw'?" in cli("help", "adamv").error


def test_help_shows_the_parts_of_a_plugin(cli, tmp_path):
    from scratchlm.optim import OPTIMIZERS

    (tmp_path / "mine.py").write_text(
        "from scratchlm.optim import OPTIMIZERS\n\n"
        "@OPTIMIZERS.register('mine_only')\n"
        "def mine(params, *, speed: float = 3.5):\n"
        '    """Go."""\n',
        encoding="utf-8",
    )
    try:
        found = cli("help", "mine_only", "--plugin", "mine.py")
        assert "optimizer.name=mine_only" in found.out
        assert "3.5" in found.out
    finally:
        OPTIMIZERS._parts.pop("mine_only", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nope_nope\n", "mine.py, line 1: ModuleNotFoundError: No module named 'nope_nope'"),
        ("x = = 3\n", "mine.py, line 1: SyntaxError: invalid syntax"),
        ("x = 1\ny = z\n", "mine.py, line 2: NameError: name 'z' is not defined"),
        (None, "--plugin mine.py: no such Python file"),
    ],
)
def test_a_broken_plugin_is_one_line_with_its_place(cli, tmp_path, content, message):
    if content is not None:
        (tmp_path / "mine.py").write_text(content, encoding="utf-8")
    assert message in cli("help", "--plugin", "mine.py").error


def test_doctor_says_what_will_be_chosen_and_why(cli):
    found = cli("doctor").out
    for word in (
        "cores",
        "bfloat16",
        "GPU",
        "memory",
        "disk",
        "C++ compiler",
        "Triton",
        "device",
        "precision",
        "torch",
    ):
        assert word in found
