"""`scratchlm plan --gpus`: tables for people, Markdown for pages, JSON for programs."""

import json

import pytest

from scratchlm.cli.plan_cluster import days, money, numbers_of, short

SMALL = ["model=gpt2-small", "model.num_layers=2", "model.context_length=256"]


def line(text, what):
    return next(found for found in text.splitlines() if found.strip().startswith(what))


def test_one_number_of_gpus_shows_every_layout_and_how_the_best_comes_about(cli):
    found = cli("plan", *SMALL, "--gpus", 16, "--gpu", "h100", "--price", "2").out
    for layout in ("ddp", "zero1", "zero2", "fsdp2", "fsdp2 x8"):
        assert line(found, layout)
    assert "by hand only" in line(found, "zero2")
    assert found.count("   best\n") == 1
    assert "the fastest that fits" in line(found, "best layout")
    assert "4 bytes each" in line(found, "gradients")
    assert "FLOPs / (16 x 0.40 x 989 TFLOP/s)" in line(found, "computing")
    assert "40% of it are assumed (--efficiency)" in line(found, "GPU")
    assert "16 GPUs x hours x $2.00" in line(found, "cost")
    assert "distributed=" in found.splitlines()[-1]
    assert "train.micro_batch_tokens=" in found.splitlines()[-1]


def test_several_numbers_show_the_best_layout_of_each(cli):
    found = cli("plan", *SMALL, "--gpus", "1,8,3000").out
    assert line(found, "1 ").split()[1] == "ddp"
    assert line(found, "8 ").rstrip().endswith(tuple("0123456789"))
    assert "rows do not divide" in line(found, "3,000")
    assert "2,048 rows a step are not divisible by 3,000 GPUs" in line(found, "not on")


def test_what_is_planned_is_said_without_the_words_of_another_model(cli):
    found = cli("plan", "gpt2-small", "model=llama-1b", "--gpus", 8).out.splitlines()
    assert found[0] == "gpt2-small with model=llama-1b"
    assert found[-1].startswith("  nproc=8 distributed=")


def test_json_holds_every_figure_of_every_layout(cli):
    (plan,) = json.loads(cli("plan", *SMALL, "--gpus", 8, "--gpu", "a100", "--format", "json").out)
    assert (plan["gpus"], plan["machine"]["name"], plan["best"]) == (8, "A100", "ddp")
    assert plan["seconds"] > 0
    assert plan["cost"] == pytest.approx(8 * plan["seconds"] / 3600 * 1.39)
    ddp = next(found for found in plan["candidates"] if found["layout"] == "ddp")
    assert ddp["memory"]["optimizer"] == 2 * ddp["memory"]["weights"] == 8 * plan["parameters"]
    (call,) = ddp["calls"]
    assert (call["kind"], call["phase"], call["gpus"]) == ("all-reduce", "last backward", 8)
    assert call["sent_bytes"] == pytest.approx(2 * 7 / 8 * 4 * plan["parameters"])


def test_markdown_is_one_table(cli):
    lines = cli("plan", *SMALL, "--gpus", "1,8", "--format", "markdown").out.splitlines()
    assert [found.count("|") for found in lines] == [11] * 4
    assert lines[0].startswith("| GPUs | layout")


def test_weak_scaling_sees_the_same_tokens_in_fewer_steps(cli):
    words = ["plan", *SMALL, "--gpus", "8,64", "--scaling", "weak", "--format", "json"]
    first, second = json.loads(cli(*words).out)
    assert second["batch_tokens"] == 8 * first["batch_tokens"]
    assert second["tokens"] == first["tokens"]


def test_what_a_machine_has_otherwise_can_be_said(cli):
    usual, slow = (
        json.loads(cli("plan", *SMALL, "--gpus", 16, "--format", "json", *words).out)[0]
        for words in ([], ["--between", "0.1", "--inside", "10", "--per-machine", "4", "--efficiency", "0.3"])
    )
    assert slow["machine"]["gpus"] == 4
    assert slow["machine"]["inside_gb_per_second"] == 10
    assert slow["efficiency"] == 0.3
    assert slow["mfu"] < usual["mfu"]


def test_a_recipe_can_be_planned_for_gpus_and_a_gpu_without_a_price_says_so(cli):
    found = cli("plan", "tinystories-17m-cpu", "--gpus", 2, "--gpu", "mi300x").out
    assert "22.7 M" in line(found, "parameters")
    assert "no price is known; say it: --price 2.50" in line(found, "cost")


def test_what_fits_nowhere_says_how_much_it_needs(cli):
    found = cli("plan", "model=llama-8b", "--gpus", 2, "--gpu", "l4").out
    assert "does not fit" in line(found, "fsdp2")
    assert "at least" in line(found, "no layout fits")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "many"], "--gpus 'many': give a number of GPUs, or several: --gpus 1,8,64,1024."),
        (["--gpus", "0"], "--gpus '0': give a number of GPUs"),
        (["--gpus", "8", "--gpu", "h10"], "unknown GPU 'h10'. Did you mean 'h100'?"),
        (["--gpus", "8", "--efficiency", "2"], "efficiency=2.0: must be above 0 and at most 1"),
        (["--gpus", "8", "--price", "-1"], "price=-1.0: Input should be greater than or equal to 0"),
        (["--gpus", "8", "--gpu", "mine.toml"], "mine.toml: no such file"),
        (["--gpus", "3000"], "2,048 rows a step are not divisible by 3,000 GPUs; choose 2,048."),
        (["--gpus", "7"], "2,048 rows a step are not divisible by 7 GPUs; choose 4 or 8."),
        (["--gpu", "h100"], "--gpu is for GPUs that are not here; say how many: --gpus 8."),
        (["--per-machine", "4"], "--per-machine is for GPUs that are not here"),
        (["--gpus", "8", "--format", "xml"], "Invalid value for '--format': 'xml' is not one of"),
    ],
)
def test_mistakes_are_one_line(cli, words, message):
    assert message in cli("plan", *SMALL, *words).error


def test_a_mistyped_size_is_told_with_the_known_ones(cli):
    error = cli("plan", "model=llama-1c", "--gpus", 8).error
    assert "unknown model 'llama-1c'. Did you mean 'llama-1b'" in error


def test_numbers_and_times_and_prices_for_people():
    assert numbers_of("1, 8,64,8") == (1, 8, 64)
    assert [short(value) for value in (0.0, 0.01234, 2.5, 6350.2)] == ["0", "12.3 ms", "2.5 s", "6,350 s"]
    assert [days(value) for value in (75.0, 300_000.0)] == ["1 min 15 s", "3.5 days"]
    assert [money(value) for value in (None, 3.456, 12345.6)] == ["?", "$3.46", "$12,346"]
