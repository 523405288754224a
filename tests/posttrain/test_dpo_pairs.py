"""Pairs as ids and rows: the last answer alone is compared, and rows lose nothing and mix nothing up."""

import itertools

import numpy as np
import pytest
import torch
from preference_files import said, some_pairs
from small_bases import tokenizer_of

from scratchlm.loss import IGNORE
from scratchlm.posttrain.datasets import Pair
from scratchlm.posttrain.pairs import PairLoader, first_epoch, write_answer, write_pairs
from scratchlm.tokenizer.chat import ChatTemplate

HOW = {"room": 160, "arrangement": "packed", "padding_id": 0}


@pytest.fixture(scope="module", params=["special", "plain"])
def template(request):
    return ChatTemplate(tokenizer_of(chat=request.param == "special"))


def test_only_the_last_answer_is_marked_and_it_is_that_answer(template):
    for pair in some_pairs(30):
        written = write_answer(pair.prompt, pair.chosen, template)
        prompt = template.render(pair.prompt, add_generation_prompt=True)
        assert not written.mask[: len(prompt)].any() or not template.special
        marked = template.tokenizer.decode(written.ids[written.mask].tolist())
        assert marked.removesuffix("<|end|>").strip() == pair.chosen
        assert written.mask[np.argmax(written.mask) :].all()


@pytest.mark.parametrize("arrangement", ["packed", "padded"])
def test_rows_hold_every_answer_once_under_its_number(template, arrangement):
    pairs, _ = write_pairs(some_pairs(9), template, max_tokens=160)
    numbers = [4, 0, 7]
    batch = pairs.rows(numbers, **HOW | {"arrangement": arrangement})
    for answer, written in enumerate(pairs.written(numbers)):
        here = batch.answers == answer
        assert here.any(dim=1).sum() == 1
        assert batch.inputs[here].tolist() == written.ids[:-1].tolist()
        expected = np.where(written.mask[1:], written.ids[1:], IGNORE)
        assert batch.targets[here].tolist() == expected.tolist()
        assert len(set(batch.documents[here].tolist())) == 1
    padding = batch.answers == 6
    assert (batch.targets[padding] == IGNORE).all()
    assert batch.reference.isnan().all()
    assert len(batch.reference) == 6


def test_pairs_that_are_too_long_or_have_equal_answers_are_left_out_and_counted(template):
    prompt = (said("user", "the"),)
    long = Pair(prompt, "the cat " * 90, "no", "here:3")
    good, equal = Pair(prompt, "cat", "dog"), Pair(prompt, "cat", "cat")
    pairs, dropped = write_pairs([good, long, equal, good], template, max_tokens=64)
    assert (len(pairs), *dropped) == (2, 1, 1)
    with pytest.raises(ValueError, match=r"here:3: has \d+ tokens and a row 64; raise context_length"):
        write_pairs([long], template, max_tokens=64, too_long="error")


def test_a_prompt_alone_may_be_too_long_as_well(template):
    pair = Pair((said("user", "the cat " * 90),), "yes", "no", "here:1")
    assert write_pairs([pair], template, max_tokens=64)[1].too_long == 1


def test_every_pair_comes_once_an_epoch_in_an_order_of_seed_and_step(template):
    pairs, _ = write_pairs(some_pairs(12), template, max_tokens=160)

    def order(seed, steps):
        loader = PairLoader(pairs, 4, reference=None, seed=seed, **HOW)
        return [[loader.number(step, item) for item in range(4)] for step in steps]

    epoch = list(itertools.chain(*order(1, range(3))))
    assert sorted(epoch) == list(range(12))
    assert order(1, range(3, 6)) != order(1, range(3))
    assert order(2, range(3)) != order(1, range(3))
    assert order(1, [2]) == [epoch[8:]]
    loader = PairLoader(pairs, 4, reference=None, seed=1, **HOW)
    whole, part = loader.rows(1, 0, 4), loader.rows(1, 2, 2)
    third, alone = whole.answers == 2, part.answers == 0
    assert torch.equal(whole.inputs[third], part.inputs[alone])
    assert first_epoch(12, 1) == epoch
