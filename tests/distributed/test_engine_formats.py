"""The engines with products in bfloat16; how rows are cut, and what is refused."""

import copy
import itertools
from unittest.mock import patch

import pytest
import torch
from engine_runs import losses, runs, told
from torch._dynamo.testing import CompileCounter

from scratchlm.distributed.engine import ENGINES, OneProcess
from scratchlm.distributed.engine_fsdp import FSDP2, Root, blocks_of, first_row, policy
from scratchlm.distributed.process import Processes
from scratchlm.generate.engine import stream
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.model import MODELS, ModelSettings
from scratchlm.model.block import Block
from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.muon import WholeMatrices
from scratchlm.tokenizer.chars import CharTokenizer
from scratchlm.train import recipes
from scratchlm.train.examine import Dictated
from scratchlm.train.run import run

PLACE = "scratchlm.model.transformer"
HALF_ROUNDING = 2e-3
"""Half of bfloat16's 2^-8 at the most; measured 1e-4 over 4 steps."""


@pytest.mark.slow
@pytest.mark.distributed
def test_products_in_bfloat16_lose_what_one_process_loses(tmp_path):
    half = "train.precision=bfloat16"
    wanted = {2: [told("ddp", half), told("fsdp2", half, "distributed=fsdp2")], 1: [told("one", half)]}
    runs(tmp_path, wanted)
    for name in ("ddp", "fsdp2"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=HALF_ROUNDING)


def test_blocks_are_gathered_in_the_format_of_products_and_added_up_in_float32():
    assert policy("float32").param_dtype is None
    half = policy("bfloat16")
    assert (half.param_dtype, half.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert not half.cast_forward_inputs, "the sums from block to block stay in float32"


def test_rows_are_cut_as_torch_cuts_chunks():
    for rows in (1, 2, 5, 7, 12):
        for parts in (2, 3, 4):
            sizes = [len(chunk) for chunk in torch.arange(rows).chunk(parts)]
            cuts = [first_row(rows, part, parts) for part in range(parts + 1)]
            found = [end - begin for begin, end in itertools.pairwise(cuts)]
            assert found == sizes + [0] * (parts - len(sizes))


def test_each_block_is_dealt_out_before_the_next_one_is_made():
    dealt_out, made = [], []

    class Dealing(FSDP2):
        def _join(self, *place):
            pass

        def _shard(self, block):
            dealt_out.append(block)
            made.append(len(dealt_out))

    class Noting(Block):
        def __init__(self, config):
            made.append(f"block {len(dealt_out)}")
            super().__init__(config)

    settings = ModelSettings(context_length=8, d_model=8, num_layers=3, num_heads=2).with_vocabulary(11)
    with Dealing().building(torch.device("cpu"), "float32", Processes()), patch(f"{PLACE}.Block", Noting):
        model = MODELS.get("transformer")(settings)
    assert made == ["block 0", 1, "block 1", 2, "block 2", 3]
    assert dealt_out == list(model.layers)
    MODELS.get("transformer")(settings)
    assert len(dealt_out) == 3, "outside nothing is watched"


def test_a_models_blocks_are_the_items_of_its_lists():
    settings = ModelSettings(context_length=8, d_model=8, num_layers=3, num_heads=2).with_vocabulary(11)
    model = MODELS.get("transformer")(settings)
    assert blocks_of(model) == list(model.layers)


@pytest.mark.compile
def test_texts_that_grow_compile_no_block_anew():
    settings = ModelSettings(context_length=8, d_model=8, num_layers=2, num_heads=2).with_vocabulary(11)
    engine, counter = FSDP2(), CompileCounter()
    engine.model = MODELS.get("transformer")(settings)
    engine.loss = Root(engine.model)
    engine._device, engine._precision = torch.device("cpu"), "float32"
    for block in engine.model.layers:
        block.compile(dynamic=False, backend=counter)
    for _ in range(2):
        engine.model(torch.ones(1, 8, dtype=torch.int64)).sum().backward()
        before = counter.frame_count
        with engine.examining(), torch.no_grad():
            for length in (3, 4, 5):
                engine.model(torch.ones(1, length, dtype=torch.int64))
        assert counter.frame_count == before > 0


def test_a_saved_state_leaves_muon_its_way_to_whole_matrices():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = OPTIMIZERS.build("muon", [{"params": [weight]}])
    optimizer.matrices = way = object()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.matrices is way
    assert isinstance(copy.deepcopy(optimizer).matrices, WholeMatrices)


def test_groups_that_do_not_fit_the_processes_are_refused_before_anything_is_prepared(tmp_path):
    processes = Processes()
    processes.world_size = 6
    settings = ["train.batch_tokens=1536", "distributed=fsdp2", "distributed.shard_processes=4"]
    config = recipes.read("demo", settings)
    with pytest.raises(ValueError, match=r"shard_processes=4: 6 processes .* choose from 2, 3, 6"):
        run(config, tmp_path / "never", processes=processes)
    assert not (tmp_path / "never").exists()


def test_what_is_wrong_is_called_as_it_was_typed():
    with pytest.raises(ValueError, match=r"^distributed\.how='tourch': "):
        ENGINES.check("ddp", {"how": "tourch"})
    with pytest.raises(ValueError, match=r"^distributed\.hwo: unknown .* Did you mean 'how'"):
        ENGINES.check("ddp", {"hwo": "torch"})


def test_all_processes_draw_from_the_logits_of_process_0():
    class FirstSaysOther(FSDP2):
        def from_first(self, tensor):
            return torch.nn.functional.one_hot(torch.full(tensor.shape[:1], 7), tensor.shape[1]) * 99.0

    tokenizer = CharTokenizer("abcdefghij")
    settings = ModelSettings(context_length=8, d_model=8, num_layers=1, num_heads=2)
    model = MODELS.get("transformer")(settings.with_vocabulary(tokenizer.vocab_size))
    pieces = list(
        stream(Dictated(model, FirstSaysOther()), tokenizer, "abc", SamplingConfig(max_new_tokens=12))
    )
    assert "".join(piece.text for piece in pieces) == tokenizer.decode([7]) * 12
    assert model.training


def test_an_optimizer_that_needs_whole_matrices_is_refused_rows_of_them():
    engine, weight = FSDP2(), torch.nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"MuonReference needs whole matrices.*optimizer.name=muon"):
        engine.make_optimizer(
            lambda groups: OPTIMIZERS.build("muon_reference", groups), [{"params": [weight]}]
        )


def test_one_process_gets_no_engine_of_several():
    from scratchlm.distributed.engine import engine_for

    assert isinstance(engine_for("fsdp2", {}, Processes()), OneProcess)
