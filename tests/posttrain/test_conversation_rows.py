"""Conversations as rows: only the assistant's words are learned, and neighbours change nothing."""

import itertools
import random

import pytest
import torch
from small_bases import tokenizer_of

from scratchlm.loss import IGNORE, token_losses
from scratchlm.model import MODELS, ModelSettings
from scratchlm.posttrain.datasets import Example
from scratchlm.posttrain.packing import PADDING, ConversationLoader, arrange, make_rows, write_all
from scratchlm.tokenizer.chat import CHAT_TOKENS, ChatTemplate

PIECES = [
    "cat ",
    "the dog",
    "12",
    "\n",
    "\u00e9",
    "User:",
    "Assistant: ",
    "",
    " ",
    *CHAT_TOKENS,
    "<|endoftext|>",
]


def some_conversations(number, seed=0):
    """Turns of random pieces, the tokenizer's special tokens and the plain roles among them."""
    draw = random.Random(seed)
    for _ in range(number):
        roles = ["system"] * draw.randint(0, 1) + ["user", "assistant"] * draw.randint(1, 3)
        yield tuple(
            {"role": role, "content": "x" + "".join(draw.choices(PIECES, k=draw.randint(0, 6)))}
            for role in roles
        )


@pytest.fixture(scope="module", params=[True, False], ids=["special", "plain"])
def template(request):
    return ChatTemplate(tokenizer_of(chat=request.param))


@pytest.fixture(scope="module")
def conversations(template):
    examples = [Example(messages) for messages in some_conversations(20)]
    return write_all(examples, template, max_tokens=400)[0]


def test_what_is_learned_is_what_the_assistant_says_and_never_a_prompt(template):
    tokenizer = template.tokenizer
    for messages in some_conversations(60):
        ids, mask = template.encode(messages)
        learned = [tokenizer.decode(list(part)) for said, part in runs(ids, mask) if said]
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        if template.special:
            assert learned == [f"{answer}<|end|>" for answer in answers]
        else:
            assert learned == [f" {answer.strip()}\n" for answer in answers]


def runs(ids, mask):
    for said, part in itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1]):
        yield said, [token for token, _ in part]


def test_special_tokens_in_what_somebody_says_stay_text(template):
    tokenizer = template.tokenizer
    specials = set(tokenizer.special_tokens.values())
    for messages in some_conversations(60, seed=1):
        ids, _ = template.encode(messages)
        expected = 1 + (2 * len(messages) if template.special else 0)
        assert sum(token in specials for token in ids) == expected
        assert set(template.render(messages)) <= set(range(tokenizer.vocab_size))


@pytest.mark.parametrize("arrangement", ["packed", "padded"])
def test_every_token_has_its_place_once(conversations, arrangement):
    chosen = [conversations.take(number) for number in range(len(conversations))]
    rows = make_rows(chosen, 400, arrangement, 0)
    found = []
    for inputs, targets, documents in zip(*rows, strict=True):
        for number in sorted(set(documents.tolist()) - {PADDING}):
            part = documents == number
            found.append((inputs[part].tolist(), targets[part].tolist()))
    expected = [
        (ids[:-1].tolist(), [int(i) if said else IGNORE for i, said in zip(ids[1:], mask[1:], strict=True)])
        for ids, mask, _ in chosen
    ]
    assert sorted(found) == sorted(expected)
    assert (rows.targets[rows.documents == PADDING] == IGNORE).all()


def small_model(vocab_size):
    torch.manual_seed(0)
    settings = ModelSettings(d_model=32, num_layers=2, num_heads=2, d_ff=48, context_length=400)
    return MODELS.get("transformer")(settings.with_vocabulary(vocab_size))


def test_a_conversation_has_the_same_loss_packed_padded_and_alone(conversations, template):
    chosen = [conversations.take(number) for number in range(8)]
    model = small_model(template.tokenizer.vocab_size)

    def total(rows):
        return token_losses(model(rows.inputs, documents=rows.documents), rows.targets).sum()

    alone = sum(float(total(make_rows([one], 400, "packed", 0)).detach()) for one in chosen)
    for arrangement in ("packed", "padded"):
        rows = make_rows(chosen, 400, arrangement, 0)
        torch.testing.assert_close(float(total(rows).detach()), alone, rtol=2e-5, atol=1e-3)
    assert len(make_rows(chosen, 400, "packed", 0).inputs) < 8


@pytest.mark.parametrize("seed", range(5))
def test_packing_fills_rows_and_never_overfills_one(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 60) for _ in range(draw.randint(1, 80))]
    rows = arrange(lengths, 60, "packed")
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    sums = [sum(lengths[number] for number in row) for row in rows]
    assert max(sums) <= 60
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 60) + 9  # of what the least can be at best
    assert arrange(lengths, 60, "padded") == [[number] for number in range(len(lengths))]


def test_the_worked_example_of_packing():
    assert arrange([5, 3, 4, 2], 7, "packed") == [[0, 3], [2, 1]]


def loader(conversations, per_step=6, seed=3):
    return ConversationLoader(
        conversations, per_step, max_tokens=400, arrangement="packed", padding_id=0, seed=seed
    )


def test_each_conversation_comes_once_an_epoch_in_an_order_of_the_seed_alone(conversations):
    def order(seed):
        made = loader(conversations, seed=seed)
        return [made.number(step, item) for step in range(10) for item in range(6)]

    first, again, other = order(3), order(3), order(4)
    assert first == again != other
    size = len(conversations)
    for start in range(0, size * (60 // size), size):
        assert sorted(first[start : start + size]) == list(range(size))
    assert first[:size] != first[size : 2 * size]


def test_micro_batches_hold_the_items_of_the_step(conversations):
    made = loader(conversations)
    whole = made.rows(7, 0, 6)
    parts = [made.rows(7, first, 2) for first in (0, 2, 4)]
    assert int((whole.targets != IGNORE).sum()) == sum(int((part.targets != IGNORE).sum()) for part in parts)


@pytest.mark.parametrize(("too_long", "kept"), [("skip", 1), ("cut", 2)])
def test_what_is_longer_than_a_row_is_left_out_or_cut_and_counted(template, too_long, kept):
    short = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    long = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "cat 12 " * 30})
    never = ({"role": "user", "content": "cat 12 " * 30}, {"role": "assistant", "content": "b"})
    examples = [Example(messages, f"a:{i}") for i, messages in enumerate((short, long, never))]
    found, dropped = write_all(examples, template, max_tokens=24, too_long=too_long)
    assert (len(found), *dropped) == (kept, 3 - kept, kept - 1)
    for number, messages in zip(range(kept), (short, long), strict=False):
        ids, mask = template.encode(messages)
        assert found.take(number).ids.tolist() == ids[:25]
        assert found.take(number).mask.tolist() == mask[:25]
    with pytest.raises(ValueError, match=r"a:1: has \d+ tokens and a row 24; raise context_length"):
        write_all(examples, template, max_tokens=24, too_long="error")


def test_learning_all_leaves_out_the_first_id_only(template):
    example = Example(({"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}))
    found, _ = write_all([example], template, max_tokens=50, learn="all")
    assert found.take(0).mask.tolist() == [False] + [True] * (found.num_tokens - 1)


def test_other_words_and_other_masks_have_another_fingerprint(template):
    def fingerprint(answer, **how):
        example = Example(({"role": "user", "content": "a"}, {"role": "assistant", "content": answer}))
        return write_all([example], template, max_tokens=50, **how)[0].fingerprint

    assert fingerprint("b") == fingerprint("b") != fingerprint("c")
    assert fingerprint("b") != fingerprint("b", learn="all")


def test_no_conversation_left_is_an_error(template):
    empty, _ = write_all([], template, max_tokens=50)
    with pytest.raises(ValueError, match="no conversation is left to learn from"):
        loader(empty)


def test_statistics_say_how_many_how_long_and_what_is_learned(template):
    turns = [("a", "b"), ("a", "b c d e f g")]
    examples = [
        Example(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
        for question, answer in turns
    ]
    found, _ = write_all(examples, template, max_tokens=50)
    lengths = [len(found.take(number).ids) for number in range(2)]
    assert f"2 conversations of {sum(lengths)} tokens, " in found.describe()
    assert f"{found.mask.sum() / sum(lengths):.0%} of them learned" in found.describe()
    assert f"the longest {max(lengths)}" in found.describe()
