"""Common beginnings are found where they save most, computed once, and change nothing but rounding."""

import itertools

import pytest
import torch

from scratchlm.evaluate import scoring
from scratchlm.evaluate.prefixes import group_rows
from scratchlm.evaluate.scoring import Pair, score
from scratchlm.model import MODELS, ModelConfig

CPU = torch.device("cpu")
SHOTS = tuple(range(100, 148))


def free(rows):
    return {row: len(row) - 1 for row in rows}


def test_shots_before_all_questions_are_one_group():
    rows = [(*SHOTS, question, *[7] * 20, answer) for question in range(5) for answer in range(2)]
    (group,) = group_rows(free(rows), least=1)
    assert (group.shared, sorted(group.rows)) == (48, sorted(rows))


def test_long_questions_are_groups_of_their_own():
    rows = [(0, *[question] * 64, answer) for question in (1, 2) for answer in range(4)]
    assert [(g.shared, len(g.rows)) for g in group_rows(free(rows), least=1)] == [(64, 4), (64, 4)]


def test_rows_that_no_smaller_group_has_use_for_share_what_all_share():
    long = [(*SHOTS, *[1] * 320, answer) for answer in range(4)]
    single = [(*SHOTS, *[question] * 40, 0) for question in (2, 3, 4)]
    groups = group_rows(free([*long, *single]), least=90)
    assert [(g.shared, g.rows) for g in groups] == [(368, long), (48, single)]
    assert saved(group_rows(free([*long, *single]), least=97)) == 3 * 368  # 2 * 48 are too few
    pairs = [(*SHOTS, *[question] * 16, answer) for question in (2, 3, 4) for answer in range(2)]
    groups = group_rows(free([*long, *pairs]), least=90)  # a pair saves 64, six rows 240
    assert [(g.shared, g.rows) for g in groups] == [(368, long), (48, pairs)]


def saved(groups):
    return sum(shared * (len(rows) - 1) for shared, rows in groups)


def test_nothing_saves_less_than_one_group_of_all_and_no_group_less_than_it_has_to():
    random = torch.Generator().manual_seed(11)
    for _ in range(40):
        starts = [
            torch.randint(0, 2, (16 * int(n),), generator=random).tolist()
            for n in torch.randint(1, 5, (4,), generator=random)
        ]
        rows = {
            (*SHOTS[:16], *starts[number % 4][: 16 * (number % 5)], *starts[(number * 7) % 4], number)
            for number in range(12)
        }
        groups = group_rows(free(rows), least=20)
        assert sorted(itertools.chain(*(group.rows for group in groups))) == sorted(rows)
        assert all(saved([group]) >= 20 or not group.shared for group in groups)
        assert saved(groups) >= 16 * 11


def test_what_saves_too_little_or_is_scored_is_not_shared():
    rows = [(*SHOTS, answer) for answer in range(3)]
    assert [g.shared for g in group_rows(free(rows), least=97)] == [0]
    assert [g.shared for g in group_rows(free(rows), least=96)] == [48]
    assert [g.shared for g in group_rows({row: 33 for row in rows}, least=1)] == [32]
    assert group_rows({}, least=1) == []
    assert [g.shared for g in group_rows(free(rows[:1]), least=0)] == [0]


def test_no_row_is_lost_and_each_group_shares_what_it_says():
    random = torch.Generator().manual_seed(3)
    rows = {
        (
            *SHOTS[: int(16 * (number % 4))],
            *torch.randint(0, 3, (1 + number % 40,), generator=random).tolist(),
        )
        for number in range(300)
    }
    groups = group_rows(free(rows), least=40)
    assert sorted(itertools.chain(*(group.rows for group in groups))) == sorted(rows)
    for shared, members in groups:
        assert len({row[:shared] for row in members}) == 1
        assert all(len(row) > shared for row in members)


@pytest.mark.parametrize(
    "part",
    [{}, {"position": "alibi"}, {"position": "learned"}, {"num_kv_heads": 2}, {"window": 24}],
    ids=str,
)
def test_scores_are_the_same_with_and_without_sharing(part, monkeypatch):
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=150, context_length=96, d_model=32, num_layers=2, num_heads=4, **part)
    model = MODELS.build("transformer", config)
    random = torch.Generator().manual_seed(5)
    pairs = []
    for question in range(6):
        asked = torch.randint(0, 90, (5 + 7 * question,), generator=random).tolist()
        for length in (1, 2, 9):
            said = torch.randint(0, 90, (length,), generator=random).tolist()
            pairs.append(Pair([*SHOTS, *asked], said))
    computed, plain = [], model.hidden

    def hidden(inputs, **cache):
        computed.append(inputs.numel())
        return plain(inputs, **cache)

    monkeypatch.setattr(model, "hidden", hidden)
    found = {}
    for least in (1, 10**9):
        monkeypatch.setattr(scoring, "LEAST_SAVED", least)
        computed.clear()
        scores = score(model, pairs, context_length=96, device=CPU)
        found[least] = scores, sum(computed)
    (shared, few), (alone, many) = found[1], found[10**9]
    assert [one.logprob for one in shared] == pytest.approx([one.logprob for one in alone], abs=1e-4)
    assert [one[1:] for one in shared] == [one[1:] for one in alone]
    assert few < 0.6 * many
