"""Plans for GPUs that are not here: what fits, what is fastest, what it costs."""

import pytest

from scratchlm.machines import find_machine
from scratchlm.train import recipes
from scratchlm.train.activations import count_activations
from scratchlm.train.cluster import ClusterPlan, plan_cluster
from scratchlm.train.memory import traced

H100 = find_machine("h100")
ROWS_OF_2048 = ["model.context_length=2048"]


@pytest.fixture(scope="module")
def plans():
    """llama-1b on 1 to 512 H100."""
    config = recipes.for_size("llama-1b", ROWS_OF_2048)
    return {plan.gpus: plan for plan in plan_cluster(config, H100, (1, 8, 64, 512))}


def found(plan: ClusterPlan, layout: str):
    return next(candidate for candidate in plan.candidates if candidate.layout.startswith(layout))


def test_alone_a_gpu_reaches_the_efficiency_that_is_assumed(plans):
    alone = plans[1]
    assert [candidate.layout for candidate in alone.candidates] == ["ddp"]
    assert alone.best.communication_seconds == 0
    assert 0.99 * 0.4 < alone.mfu < 0.4  # the update takes a moment
    flops = alone.tokens * alone.flops_per_token
    assert alone.seconds == pytest.approx(flops / (0.4 * 989.4e12), rel=0.01)


def test_more_gpus_are_faster_and_waste_more(plans):
    speeds = [plan.tokens_per_second for plan in plans.values()]
    assert speeds == sorted(speeds)
    shares = [plan.mfu for plan in plans.values()]
    assert shares == sorted(shares, reverse=True)
    costs = [plan.cost for plan in plans.values()]
    assert costs == sorted(costs)


def test_the_best_layout_fits_has_an_engine_and_is_the_simplest_of_the_fastest(plans):
    for plan in plans.values():
        fitting = [c.step_seconds for c in plan.candidates if c.fits and c.has_engine]
        assert plan.best.fits
        assert plan.best.has_engine
        assert plan.best.step_seconds <= 1.01 * min(fitting)
        before = plan.candidates[: plan.candidates.index(plan.best)]
        assert all(c.step_seconds > 1.01 * min(fitting) for c in before if c.fits and c.has_engine)
    assert not found(plans[8], "zero2").has_engine


def test_a_step_is_its_parts_and_its_rows_are_all_computed(plans):
    for gpus, plan in plans.items():
        for made in plan.candidates:
            assert made.memory_bytes == sum(part.num_bytes for part in made.memory)
            assert made.sent_bytes == pytest.approx(sum(call.sent_bytes for call in made.calls))
            assert made.exposed_seconds <= made.communication_seconds
            assert made.micro_rows * made.accumulation * gpus * 2048 == plan.batch_tokens
            parts = made.compute_seconds + made.update_seconds + made.exposed_seconds
            assert made.step_seconds == pytest.approx(parts)


def test_sharding_more_needs_less_memory_beside_activations(plans):
    def beside(layout):
        return sum(p.num_bytes for p in found(plans[64], layout).memory if p.name != "activations")

    assert beside("ddp") > beside("zero1") > beside("zero2") > beside("fsdp2")


def test_a_slow_network_makes_gpus_share_within_their_machine():
    # several micro-batches a step: weights travel for each of them
    config = recipes.for_size("llama-3b", [*ROWS_OF_2048, "train.micro_batch_tokens=2048"])
    slow = find_machine("h100", between_gb_per_second=1.0)
    (plan,) = plan_cluster(config, slow, (64,))
    everyone, inside = (c for c in plan.candidates if c.layout.startswith("fsdp2"))
    assert inside.shard == 8
    assert inside.sent_bytes < everyone.sent_bytes
    gather = next(call for call in inside.calls if call.phase == "forward")
    assert gather.gpus == 8


def test_what_does_not_fit_with_activations_is_computed_again_and_what_never_fits_is_said():
    config = recipes.for_size("llama-8b")
    (plan,) = plan_cluster(config, H100, (8,))
    assert plan.best.layout == "fsdp2"
    assert plan.best.checkpointing
    assert not found(plan, "ddp").fits
    without = plan.best.accumulation * plan.best.micro_rows * 8192 * plan.flops_per_token / (0.4 * 989.4e12)
    assert plan.best.compute_seconds == pytest.approx(4 / 3 * without)
    (small,) = plan_cluster(config, find_machine("rtx-4090"), (8,))
    assert small.best is None
    assert (small.seconds, small.mfu, small.cost, small.tokens_per_second) == (None, None, None, None)
    assert small.candidates


def test_on_a_slow_network_computing_again_is_cheaper_than_sending_again():
    slow = find_machine("h100", between_gb_per_second=1.5)
    fast, slowly = (
        plan_cluster(recipes.for_size("llama-8b", ROWS_OF_2048), m, (64,))[0] for m in (H100, slow)
    )
    assert not fast.best.checkpointing
    assert slowly.best.checkpointing
    assert slowly.best.accumulation < fast.best.accumulation


def test_strong_scaling_keeps_the_step_and_weak_scaling_the_rows_of_a_gpu():
    config = recipes.for_size("gpt2-small")
    strong = plan_cluster(config, H100, (8, 64))
    weak = plan_cluster(config, H100, (8, 64), scaling="weak")
    assert [plan.batch_tokens for plan in strong] == [2**19, 2**19]
    assert [plan.batch_tokens for plan in weak] == [2**19, 2**22]
    assert weak[1].steps == pytest.approx(weak[0].steps / 8, abs=1)
    assert weak[1].mfu > strong[1].mfu


def test_rows_that_do_not_divide_are_an_obstacle_and_no_error():
    config = recipes.for_size("gpt2-small")  # 512 rows
    odd, many = plan_cluster(config, H100, (3, 1024))
    assert odd.obstacle == "512 rows a step are not divisible by 3 GPUs; choose 2 or 4"
    assert many.obstacle == "512 rows a step are not divisible by 1,024 GPUs; choose 512"
    assert odd.best is None
    assert odd.candidates == ()


def test_settings_of_the_recipe_are_kept():
    words = ["train.micro_batch_tokens=4096", "train.gradient_checkpointing=true", "train.precision=float32"]
    (plan,) = plan_cluster(recipes.for_size("gpt2-small", [*words, "optimizer=sgd"]), H100, (8,))
    assert (plan.best.micro_rows, plan.best.checkpointing) == (4, True)
    assert plan.peak_flops == pytest.approx(66.9e12)  # float32
    assert next(p.num_bytes for p in plan.best.memory if p.name == "optimizer") <= 4 * plan.parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpus": (0,)}, r"gpus=0: give numbers of at least 1"),
        ({"gpus": ()}, r"gpus=none: give numbers of at least 1"),
        ({"gpus": (8,), "efficiency": 1.5}, r"efficiency=1\.5: must be above 0 and at most 1"),
    ],
)
def test_impossible_questions_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_cluster(recipes.for_size("gpt2-small"), H100, **arguments)


def test_a_gpu_without_a_known_peak_cannot_be_planned():
    unknown = H100.model_copy(update={"name": "Z9000"})
    with pytest.raises(ValueError, match=r"Z9000: its peak is unknown, .*name a GPU of hardware.py"):
        plan_cluster(recipes.for_size("gpt2-small"), unknown, (8,))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_of_a_large_batch_follow_from_those_of_one_row(checkpointing):
    import torch

    from scratchlm.model import MODELS

    config = recipes.for_size("gpt2-small", ["model.context_length=256", "model.num_layers=5"])
    settings = config.model.with_vocabulary(16).model_copy(update={"attention": "sdpa"})
    row = count_activations(settings, "float32", checkpointing=checkpointing)

    def train():
        model = MODELS.get("transformer")(settings)
        model.gradient_checkpointing = checkpointing
        for _ in range(2):
            model.hidden(torch.zeros(6, 256, dtype=torch.long)).sum().backward()

    with torch.device("meta"):
        weights = sum(p.nbytes for p in MODELS.get("transformer")(settings).parameters())
    counted = 6 * (row.outside + 5 * row.block)
    # beside them a block's worth of weight gradients on their way into the sums
    assert counted <= traced(train) - 2 * weights <= 1.25 * counted
    assert row.part(2, 80e9).num_bytes > 2 * row.outside


def test_a_known_model_is_trained_as_is_usual_for_its_size():
    config = recipes.for_size("llama-1b", ["train.steps=7"])
    assert config.tokenizer.settings["vocab_size"] == 128256
    assert (config.train.batch_tokens, config.optimizer.settings["lr"], config.train.steps) == (
        2**20,
        2e-4,
        7,
    )
    usual = recipes.for_size("llama-1b")
    assert usual.train.steps * usual.train.batch_tokens == pytest.approx(20 * 1_235_814_400, rel=1e-4)
    assert recipes.for_size("gpt2-small").optimizer.settings["lr"] == 6e-4
    assert recipes.for_size("llama-70b").train.batch_tokens == 2**22
