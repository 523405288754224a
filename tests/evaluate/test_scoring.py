"""Claims about the likelihood of continuations: in any company the same, each token counted once."""

import itertools

import pytest
import torch

from scratchlm.evaluate import scoring
from scratchlm.evaluate.scoring import Pair, encode_pair, score, windows
from scratchlm.model import MODELS, ModelConfig
from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    """One id per byte, 0 ends a text, and " th", "the"."""
    vocab = {0: END_OF_TEXT.encode(), **{i + 1: bytes([i]) for i in range(256)}}
    merges = [(b"t", b"h"), (b"th", b"e"), (b" ", b"the")]
    vocab |= {257 + i: left + right for i, (left, right) in enumerate(merges)}
    return BPETokenizer(vocab, merges, [END_OF_TEXT])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=260, context_length=16, d_model=32, num_layers=2, num_heads=4)
    built = MODELS.build("transformer", config)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2)
    return built.eval()


def pairs_of_all_lengths():
    random = torch.Generator().manual_seed(5)
    lengths = itertools.product((1, 2, 7, 14, 30), (1, 2, 5, 16, 17, 40))
    draw = lambda count: torch.randint(0, 260, (count,), generator=random).tolist()  # noqa: E731
    return [Pair(draw(context), draw(continuation)) for context, continuation in lengths]


@torch.no_grad()
def plainly(model, pair, length=16):
    """One token after the other, each with what the windows say that it sees."""
    ids = [*pair.context, *pair.continuation]
    total, greedy = 0.0, True
    for start, end, num_targets in windows(len(pair.context), len(ids), length):
        logits = model(torch.tensor([ids[start:end]]))[0].double().log_softmax(-1)
        for place in range(end - num_targets, end):
            total += float(logits[place - start, ids[place + 1]])
            greedy &= int(logits[place - start].argmax()) == ids[place + 1]
    return total, greedy


def test_scores_are_those_of_one_text_at_a_time(model):
    pairs = pairs_of_all_lengths()
    found = score(model, pairs, context_length=16, device=CPU)
    for pair, mine in zip(pairs, found, strict=True):
        logprob, greedy = plainly(model, pair)
        assert mine.logprob == pytest.approx(logprob, rel=1e-5)
        assert mine.is_greedy == greedy
        assert mine.num_tokens == len(pair.continuation)


def test_company_and_order_change_nothing_but_rounding(model, monkeypatch):
    pairs = pairs_of_all_lengths()
    found = score(model, pairs, context_length=16, device=CPU)
    monkeypatch.setattr(scoring, "PORTION", 7)
    monkeypatch.setattr(scoring, "TOKENS_TOGETHER", 20)
    monkeypatch.setattr(scoring, "LOGITS_TOGETHER", 1000)
    again = score(model, iter(pairs[::-1]), context_length=16, device=CPU)[::-1]
    assert [mine.logprob for mine in again] == pytest.approx([mine.logprob for mine in found], rel=1e-5)
    assert [mine[1:] for mine in again] == [mine[1:] for mine in found]


def test_what_greedy_generation_writes_is_greedy_and_nothing_else(model):
    context, written = [0, 5, 6], []
    with torch.no_grad():
        for _ in range(5):
            written.append(int(model(torch.tensor([context + written]))[0, -1].argmax()))
    other = [*written[:-1], (written[-1] + 1) % 260]
    found = score(model, [Pair(context, written), Pair(context, other)], context_length=16, device=CPU)
    assert [mine.is_greedy for mine in found] == [True, False]


def test_one_wrong_token_in_the_first_of_two_windows_is_seen(model):
    ids = [0]
    with torch.no_grad():
        for place in range(1, 21):  # windows: 0 to 16 predict the first 16, 4 to 20 the last 4
            seen = torch.tensor([ids[0 if place <= 16 else 4 :]])
            ids.append(int(model(seen)[0, -1].argmax()))
    other = [*ids[:2], (ids[2] + 1) % 260, *ids[3:]]
    for some, expected in ((ids, True), (other, False)):
        found = score(model, [Pair(some[:1], some[1:])], context_length=16, device=CPU)
        assert found[0].is_greedy == expected


def test_answers_behind_one_question_are_one_row(model, monkeypatch):
    rows = []
    plain = model.hidden
    monkeypatch.setattr(model, "hidden", lambda inputs: rows.append(tuple(inputs.shape)) or plain(inputs))
    score(model, [Pair([0, 1, 2], [letter]) for letter in (3, 4, 5, 6)], context_length=16, device=CPU)
    assert rows == [(1, 3)]


def test_rows_are_hardly_filled_up(model, monkeypatch):
    computed = []
    plain = model.hidden
    monkeypatch.setattr(model, "hidden", lambda inputs: computed.append(inputs.numel()) or plain(inputs))
    monkeypatch.setattr(scoring, "TOKENS_TOGETHER", 64)
    pairs = [Pair([0, number], [1] * (1 + number % 13)) for number in range(200)]
    score(model, pairs, context_length=16, device=CPU)
    assert sum(computed) < 1.1 * sum(1 + len(pair.continuation) for pair in pairs)


def test_model_is_left_in_the_mode_in_which_it_came(model):
    model.train()
    score(model, [Pair([0], [1])], context_length=16, device=CPU)
    assert model.training
    model.eval()


@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_each_token_is_predicted_once_by_as_much_as_there_is_room_for(length):
    for num_context, num_new in itertools.product(range(1, 20), range(1, 40)):
        num_ids, predicted = num_context + num_new, []
        for start, end, num_targets in windows(num_context, num_ids, length):
            assert 0 <= start < end <= start + length
            predicted += range(end - num_targets + 1, end + 1)
            assert start == max(0, end - length)  # nothing is cut off that fits
        assert predicted == list(range(num_context, num_ids))


def test_progress_ends_at_the_number_of_pairs(model, monkeypatch):
    monkeypatch.setattr(scoring, "PORTION", 4)
    told = []
    score(model, pairs_of_all_lengths(), context_length=16, device=CPU, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 30


def test_logits_that_are_no_numbers_are_refused(model):
    broken = MODELS.build("transformer", model.config)
    with torch.no_grad():
        broken.ln_final.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="pair 0: the model's logits are no numbers"):
        score(broken, [Pair([0], [1])], context_length=16, device=CPU)


def test_empty_pair_is_refused(model):
    for pair in (Pair([], [1]), Pair([0], [])):
        with pytest.raises(ValueError, match="pair 1: needs a token of context and one of continuation"):
            score(model, [Pair([0], [1]), pair], context_length=16, device=CPU)


def test_text_is_encoded_as_a_whole_and_blanks_belong_to_the_continuation(tokenizer):
    blank_the = 259
    assert encode_pair(tokenizer, "a", " the") == Pair([0, 98], [blank_the])
    assert encode_pair(tokenizer, "a ", "the") == Pair([0, 98], [blank_the])
    assert encode_pair(tokenizer, "", "a") == Pair([0], [98])
    assert encode_pair(tokenizer, "  ", "a") == Pair([0], [33, 33, 98])


def test_token_over_the_border_is_scored_as_a_whole(tokenizer):
    assert encode_pair(tokenizer, "a th", "e") == Pair([0, 98], [259])
    assert encode_pair(tokenizer, "t", "he") == Pair([0], [258])


def test_special_tokens_in_a_question_stay_text(tokenizer):
    pair = encode_pair(tokenizer, END_OF_TEXT, END_OF_TEXT)
    assert list(pair.context).count(0) == 1
    assert 0 not in pair.continuation


def test_nothing_to_score_is_refused(tokenizer):
    with pytest.raises(ValueError, match="the continuation is empty"):
        encode_pair(tokenizer, "a", "")
