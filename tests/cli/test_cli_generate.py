"""`scratchlm generate`: several texts at once, guesses, searches, biases, and the table of tokens."""

import pytest

from scratchlm.cli.generate import read_biases
from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer


@pytest.fixture(scope="module")
def tokenizer():
    vocab = {0: END_OF_TEXT.encode(), **{i + 1: bytes([i]) for i in range(256)}, 257: b"th"}
    return BPETokenizer(vocab, [(b"t", b"h")], [END_OF_TEXT])


@pytest.fixture
def write(cli, finished_run):
    """Let the finished run continue a text by twelve tokens."""
    return lambda *words: cli("generate", finished_run, "Once upon", "--max-new-tokens", 12, *words)


def test_several_texts_are_those_of_their_seeds(write):
    texts = [write("--seed", seed).out.strip() for seed in range(3)]
    together = write("-n", 3).out
    assert together.split() == " ".join(f"seed {i} {text}" for i, text in enumerate(texts)).split()


@pytest.mark.parametrize("draft", ["ngram", "run"])
def test_guesses_change_nothing(write, finished_run, draft):
    word = finished_run if draft == "run" else draft
    plain, guessed = write("--temperature", 0), write("--temperature", 0, "--draft", word)
    assert guessed.out == plain.out
    assert "guesses were right: 12 tokens in" in guessed.err


def test_a_search_gives_its_best_texts_in_order(write):
    scores = [
        float(line[6:]) for line in write("--beams", 4, "-n", 3).out.splitlines() if line[:6] == "score "
    ]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    (one,) = {write("--beams", 1).out, write("--temperature", 0).out}
    assert one.startswith("Once upon")


def test_the_table_shows_each_token_and_what_was_likely_instead(write):
    table = write("--alternatives", 2, "--temperature", 0).out.splitlines()
    rows = table[table.index(next(line for line in table if line.startswith("token"))) + 1 :]
    assert len(rows) == 12
    for row in rows:
        token, rest = row[1:].split("'", 1)
        assert rest.split()[1].startswith(token.strip()) or not token.strip()  # the likeliest is the first


def test_a_bias_forces_a_token(write):
    assert write("--logit-bias", "k=1000").out.strip().endswith("k" * 12)


def test_biases_are_read_by_id_and_by_text(tokenizer):
    words = ["7=-100", "th=1.5", "==2"]
    assert read_biases(words, tokenizer) == {7: -100.0, 257: 1.5, 1 + ord("="): 2.0}
    for word in ("7", "=3", "7=many"):
        with pytest.raises(ValueError, match="give TOKEN=NUMBER"):
            read_biases([word], tokenizer)
    with pytest.raises(ValueError, match=r"this is 2 tokens, \[98, 257\]; name one by its id"):
        read_biases(["ath=1"], tokenizer)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beams", 2, "--top-k", 3, "--seed", 1], "leave --seed, --top-k out"),
        (["--beams", 2, "-n", 3], "finds no more than 2 texts"),
        (["--length-penalty", 2], "give --beams, too"),
        (["--presence-penalty", 3], "presence_penalty=3.0"),
        (["--logit-bias", "99999=1"], "there is no token 99999"),
        (["--draft", "nowhere"], "nowhere: no run folder"),
    ],
)
def test_what_does_not_go_together_is_one_line(write, words, message):
    assert message in write(*words).error
