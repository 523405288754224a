"""`scratchlm tokenizer`: settings and profile of training, other sizes, other programs' formats, pages."""

import json
from pathlib import Path

import pytest

from scratchlm.tokenizer import load_tokenizer
from scratchlm.tokenizer.formats import read_any

TEXT = "Once upon a time, Gr\u00fc\u00dfe \u65e5\u672c <|endoftext|>"


@pytest.fixture
def tokenizer(cli, stories):
    assert cli("tokenizer", "train", stories, "--vocab-size", 400, "-o", "t.json").code == 0
    return "t.json"


def ids_of(cli, *words):
    found = cli("tokenizer", "encode", *words, TEXT)
    assert found.code == 0, found
    return [int(word) for word in found.out.split()]


# train


def test_profile_shows_the_phases(cli, stories):
    found = cli("tokenizer", "train", stories, "--vocab-size", 300, "--profile", "-o", "t.json")
    assert found.code == 0
    lines = [line.split()[0] for line in found.err.splitlines()]
    assert [word for word in lines if word in ("phase", "count", "merge", "vocabulary", "in")] == [
        "phase",
        "count",
        "merge",
        "vocabulary",
        "in",
    ]
    assert "peak memory" in found.err


def test_profile_says_one_thread(cli, stories):
    words = ["--vocab-size", 300, "--set", "num_threads=1", "--profile", "-o", "t.json"]
    assert "MB/s on 1 thread;" in cli("tokenizer", "train", stories, *words).err


def test_profile_says_where_there_is_nothing_to_measure(cli, stories):
    found = cli("tokenizer", "train", stories, "--kind", "words", "--profile", "-o", "t.json")
    assert found.code == 0
    assert "warning: --profile: a 'words' has no phases to measure; it is ignored." in found.err


def test_settings_reach_the_trainer(cli, stories):
    for tie in ("bytes", "raw"):
        words = ["--vocab-size", 300, "--set", f"tie={tie}", "-o", f"{tie}.json"]
        assert cli("tokenizer", "train", stories, *words).code == 0
    assert load_tokenizer(Path("bytes.json")).special_tokens == {"<|endoftext|>": 0}
    assert load_tokenizer(Path("raw.json")).special_tokens == {"<|endoftext|>": 299}


@pytest.mark.parametrize("kind", ["scaffold", "superbpe", "words", "chars"])
def test_every_kind_gives_the_text_back(cli, stories, kind):
    size = [] if kind == "chars" else ["--vocab-size", 400]
    assert cli("tokenizer", "train", stories, "--kind", kind, *size, "-o", "t.json").code == 0
    text = "Once there was a little"
    ids = cli("tokenizer", "encode", "t.json", text).out.split()
    assert cli("tokenizer", "decode", "t.json", *ids).out == text + "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "tie"], "--set tie: write it as key=value."),
        (["--set", "ties=hf"], "Did you mean 'tie'?"),
        (["--set", "tie=foo"], "tokenizer.tie='foo'"),
        (["--set", "num_threads=0"], "num_threads=0: must be at least 1"),
        (["--set", 'special_tokens=["a"]'], "special token 'a': a single byte, which has an id already"),
        (["--kind", "bpx"], "unknown tokenizer 'bpx'. Did you mean 'bpe'?"),
        (["--pattern", "gpt3"], "pattern 'gpt3' is not known; choose one of gpt2"),
        (["--vocab-size", 100], "vocab_size=100 is too small"),
        (["--output", "/proc/t.json", "--vocab-size", 300], "/proc/t.json: no such file or directory"),
    ],
)
def test_a_mistake_in_training_is_one_line(cli, stories, tmp_path, words, message):
    assert message in cli("tokenizer", "train", stories, *words).error
    assert [path.name for path in tmp_path.iterdir()] == ["stories.txt"]


# other sizes


def test_extend_keeps_the_old_ids_and_adds_new_ones(cli, tokenizer, stories):
    assert cli("tokenizer", "extend", tokenizer, stories, "--vocab-size", 450, "-o", "e.json").code == 0
    old, new = load_tokenizer(Path(tokenizer)), load_tokenizer(Path("e.json"))
    assert new.vocab_size == 450
    assert old.vocab.items() <= new.vocab.items()


def test_cut_gives_what_training_at_that_size_gives(cli, tokenizer, stories):
    assert cli("tokenizer", "cut", tokenizer, "--vocab-size", 300, "-o", "c.json").code == 0
    assert cli("tokenizer", "train", stories, "--vocab-size", 300, "-o", "s.json").code == 0
    assert Path("c.json").read_bytes() == Path("s.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extend", "t.json", "gone.txt", "--vocab-size", 450], "gone.txt: no such file or folder"),
        (["extend", "t.json", "stories.txt", "--vocab-size", 100], "the tokenizer has 400 ids already"),
        (["extend", "stories.txt", "stories.txt", "--vocab-size", 450], "stories.txt: no tokenizer's file"),
        (["cut", "t.json", "--vocab-size", 100], "can be cut to 257"),
        (["cut", "t.json", "--vocab-size", 500], "up to 400, which it has"),
        (["cut", "t.json", "--vocab-size", 300, "-o", "."], "is a folder"),
        (["cut", "gone.json", "--vocab-size", 300], "scratchlm tokenizer train TEXT -o gone.json"),
    ],
)
def test_a_mistake_with_sizes_is_one_line(cli, tokenizer, words, message):
    assert message in cli("tokenizer", *words).error


# formats


@pytest.mark.parametrize(
    ("to", "place", "more"),
    [
        ("scratchlm", "copy.json", []),
        ("gpt2", "folder", []),
        ("huggingface", "folder", []),
        ("tiktoken", "ranks.tiktoken", ["--pattern", "gpt2"]),
    ],
)
def test_each_format_gives_the_same_ids_and_leads_back(cli, tokenizer, to, place, more):
    assert cli("tokenizer", "convert", tokenizer, "--to", to, "-o", place).code == 0
    expected = ids_of(cli, tokenizer)
    assert ids_of(cli, place, *more) == expected
    assert cli("tokenizer", "convert", place, "--to", "scratchlm", "-o", "back.json", *more).code == 0
    assert ids_of(cli, "back.json") == expected


def test_convert_says_what_ranks_do_not_hold(cli, tokenizer):
    said = cli("tokenizer", "convert", tokenizer, "--to", "tiktoken", "-o", "t.tiktoken").err
    assert "read it with --pattern gpt2" in said
    assert "does not hold special tokens; tell its reader: <|endoftext|> = 0" in said
    assert read_any(Path("t.tiktoken"), pattern="gpt2", special_tokens={"<|endoftext|>": 0}).special_tokens


def test_convert_says_that_merges_do_not_name_the_pattern(cli, stories, tokenizer):
    assert cli("tokenizer", "convert", tokenizer, "--to", "gpt2", "-o", "a").err == ""
    cli("tokenizer", "train", stories, "--vocab-size", 300, "--pattern", "cl100k", "-o", "c.json")
    said = cli("tokenizer", "convert", "c.json", "--to", "gpt2", "-o", "b").err
    assert "read it with --pattern cl100k" in said
    assert ids_of(cli, "b", "--pattern", "cl100k") == ids_of(cli, "c.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "gone.json", "a"], "gone.json: no such tokenizer"),
        (["encode", "damaged.json", "a"], "damaged.json: not valid JSON"),
        (["encode", "binary", "a"], "binary: no tokenizer's file"),
        (["encode", "empty", "a"], "empty: a folder with no tokenizer"),
        (["encode", "t.json", "a", "--pattern", "cl100k"], "its split pattern is 'gpt2', not 'cl100k'"),
        (["encode", "t.json", "-f", "binary"], "binary: byte 0 is not valid UTF-8"),
        (["encode", "t.json", "-f", "empty"], "empty: is a directory; give a file"),
        (["decode", "t.json", "1", "-f", "stories.txt"], "ids and --file were both given"),
        (["convert", "t.json", "--to", "tiktoken", "-o", "empty"], "empty: is a directory; give a file"),
        (["convert", "t.json", "--to", "gpt2", "-o", "stories.txt"], "stories.txt: file exists"),
        (["inspect", "t.json", "--html", "empty"], "empty: is a directory; give a file"),
        (["inspect", "t.json", "-c", "gone.txt"], "gone.txt: no such file or folder"),
    ],
)
def test_a_mistake_with_files_is_one_line(cli, tokenizer, words, message):
    Path("damaged.json").write_bytes(Path(tokenizer).read_bytes()[:40])
    Path("binary").write_bytes(bytes(range(255, 0, -1)))
    Path("empty").mkdir()
    assert message in cli("tokenizer", *words).error
    assert list(Path("empty").iterdir()) == []


# views


def test_inspect_writes_a_page_and_counts_a_corpus(cli, tokenizer, stories):
    found = cli("tokenizer", "inspect", tokenizer, "a <b> & \u65e5", "-c", stories, "--html", "p.html")
    assert found.code == 0
    assert "stories.txt" in found.out
    assert "most frequent" in found.out
    assert "page: p.html" in found.out
    page = Path("p.html").read_text(encoding="utf-8")
    assert "stories.txt" in page
    assert "<b>" not in page
    assert "&lt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched


def test_compare_shows_both_and_the_ratio(cli, tokenizer, stories):
    assert cli("tokenizer", "cut", tokenizer, "--vocab-size", 300, "-o", "c.json").code == 0
    words = ["compare", tokenizer, "c.json", "Once upon", "--corpus", stories, "--html", "p.html"]
    found = cli("tokenizer", *words)
    assert found.code == 0
    assert "shared entries   300" in found.out
    row = next(line.split() for line in found.out.splitlines() if line.startswith("stories.txt"))
    first, second, ratio = map(float, row[1:])
    assert ratio == pytest.approx(second / first, abs=0.02)
    assert ratio < 1
    assert "c.json" in Path("p.html").read_text(encoding="utf-8")


def test_the_name_of_a_special_token_cannot_write_to_the_terminal(cli, stories):
    words = ["--vocab-size", 300, "--set", r'special_tokens=["<|\u001b[2J|>"]', "-o", "t.json"]
    assert cli("tokenizer", "train", stories, *words).code == 0
    assert list(load_tokenizer(Path("t.json")).special_tokens) == ["<|\x1b[2J|>"]
    shown = cli("tokenizer", "inspect", "t.json").out
    shown += cli("tokenizer", "convert", "t.json", "--to", "tiktoken", "-o", "t.tiktoken").err
    assert shown.count("<|\ufffd[2J|> = 0") == 2
    assert "\x1b" not in shown


def test_a_saved_tokenizer_is_plain_json(cli, tokenizer):
    assert json.loads(Path(tokenizer).read_text(encoding="utf-8"))["type"] == "bpe"


@pytest.mark.parametrize(
    ("phase", "unit"), [("count", "MB/s"), ("merge", "merges/s"), ("replay", "merges/s")]
)
def test_the_bar_names_the_phase_and_its_unit(phase, unit):
    from scratchlm.cli.tokenizer_train import _reporter

    class Bar:
        def update(self, done, total, detail=""):
            self.detail = detail

    bar = Bar()
    report = _reporter(bar)
    for done in (1, 2):
        report(phase, done, 10)
    assert bar.detail.startswith(phase)
    assert bar.detail.endswith(unit)


def test_ranks_get_their_special_tokens_back(cli, stories):
    assert (
        cli("tokenizer", "train", stories, "--vocab-size", "300", "--set", "tie=raw", "-o", "r.json").code
        == 0
    )
    assert cli("tokenizer", "convert", "r.json", "--to", "tiktoken", "-o", "r.tiktoken").code == 0
    back = ["tokenizer", "convert", "r.tiktoken", "--pattern", "gpt2", "--to", "scratchlm", "-o", "back.json"]
    assert cli(*back, "--special", "<|endoftext|>=299").code == 0
    text = "the dog<|endoftext|>the cat"
    encoded = [cli("tokenizer", "encode", name, text, "--special").out for name in ("r.json", "back.json")]
    assert encoded[0] == encoded[1]
    assert " 299 " in encoded[0]
    assert "--special x: write it as NAME=ID" in cli(*back, "--special", "x").err
