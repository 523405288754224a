"""Layouts: the tables of bytes held and sent, by examples; tests/distributed/ measures them."""

import pytest

from scratchlm.model import ModelConfig
from scratchlm.model.sizes import named_size
from scratchlm.train.layouts import Layout, Sizes, held, messages_of, sizes_of

SETTINGS = {"vocab_size": 601, "context_length": 32, "d_model": 48, "num_layers": 3, "num_heads": 4}
SIZES = sizes_of(ModelConfig(**SETTINGS), whole_bytes=4)


def parts_of(layout, sizes):
    return {part.name: part.num_bytes for part in held(layout, sizes)}


def test_one_gpu_holds_16_bytes_a_parameter_and_sends_nothing():
    alone = Layout("ddp", 1, 1)
    parts = parts_of(alone, SIZES)
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == 16 * SIZES.parameters
    assert messages_of(alone, SIZES).sent_bytes(3) == 0


def test_the_largest_share_is_that_of_the_owner_with_the_largest_matrix():
    sizes = sizes_of(ModelConfig(**named_size("llama-1b")))
    embedding = 128256 * 2048  # a fifth of the model: no number of owners makes its owner's share smaller
    assert sizes.largest_share(1024) * sizes.parameters == embedding
    assert sizes.largest_share(1) == 1
    even = Sizes(1000, 100, 10, matrices=(100,) * 10)
    assert even.largest_share(5) == 1 / 5


def test_sharded_training_gathers_in_the_format_of_the_products_and_adds_up_in_float32():
    narrow, wide = SIZES._replace(whole_bytes=2), SIZES
    share, total, root = 3 / 4, SIZES.parameters, SIZES.root
    four = Layout("fsdp2", 4, 4)
    assert messages_of(four, wide).sent_bytes(1) == pytest.approx(share * (12 * total - 4 * root))
    assert messages_of(four, narrow).sent_bytes(1) == pytest.approx(share * (8 * total))
    # the next micro-batch does all of it again, and adds its rows of gradients to those that are there
    assert messages_of(four, wide).sent_bytes(2) == 2 * messages_of(four, wide).sent_bytes(1)
    assert parts_of(four, wide)["gradients"] == total


def test_hybrid_sharding_keeps_the_weights_in_the_machine_and_averages_rows_between_machines():
    found = messages_of(Layout("fsdp2", 32, 8), SIZES)
    gathering, averaging = found.forward[0], found.last_backward[0]
    assert (gathering.group.size, gathering.group.machines) == (8, 1)
    assert (averaging.kind, averaging.group.size, averaging.group.machines) == ("all-reduce", 4, 4)
    assert averaging.num_bytes == pytest.approx(4 * SIZES.parameters / 8)
    assert parts_of(Layout("fsdp2", 32, 8), SIZES) == parts_of(Layout("fsdp2", 8, 8), SIZES)


def test_a_size_is_made_of_its_blocks_and_its_root():
    sizes = sizes_of(ModelConfig(**named_size("llama-1b")))
    assert sizes.parameters == 1_235_814_400
    assert sizes.root == pytest.approx(128256 * 2048, rel=1e-4)
    assert sizes.num_blocks * sizes.block + sizes.root == sizes.parameters
    assert sum(sizes.matrices) == sizes.parameters


def test_an_average_of_the_weights_is_shared_as_they_are():
    averaging = SIZES._replace(averages=True)
    for made in (Layout("zero1", 4, 1), Layout("fsdp2", 4, 4)):
        parts = parts_of(made, averaging)
        assert parts["average"] == parts["weights"]
