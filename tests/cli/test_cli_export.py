"""`scratchlm export` and `scratchlm import` from the command line."""

import json
import shutil
from pathlib import Path

import torch

from scratchlm.train.folder import load_run


def test_a_run_goes_out_and_comes_back_and_trains_on(cli, finished_run, stories):
    made = cli("export", "hf", finished_run, "elsewhere", "--checkpoint", "best")
    assert (made.code, made.err) == (0, "")
    assert "ForCausalLM, float32" in made.out
    card = Path("elsewhere/README.md").read_text(encoding="utf-8")
    summary = json.loads((finished_run / "summary.json").read_text(encoding="utf-8"))
    assert f"| validation loss, nats per token | {summary['valid_loss']:.4f} |" in card
    short = ["train.steps=3", "train.compile=false"]
    back = cli("import", "hf", "elsewhere", "tuned", stories, *short, "train.save_every=3")
    assert (back.code, back.err) == (0, "")
    assert "scratchlm train tuned --resume" in back.out
    first, second = (load_run(path, device="cpu") for path in (finished_run, Path("tuned")))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(second.model(ids), first.model(ids), atol=1e-5, rtol=1e-5)
    assert cli("generate", "tuned", "-n", "1", "--max-new-tokens", "4").code == 0
    tuned = cli("train", "tuned", "--resume")
    assert tuned.code == 0, tuned.err
    assert json.loads(Path("tuned/summary.json").read_text(encoding="utf-8"))["steps"] == 3
    with torch.no_grad():
        assert not torch.equal(load_run(Path("tuned"), device="cpu").model(ids), first.model(ids))


def test_what_cannot_go_out_is_named_and_nothing_is_left(cli, finished_run):
    shutil.copytree(finished_run, "other")
    path = Path("other/config.json")
    table = json.loads(path.read_text(encoding="utf-8"))
    table["model"]["window"] = 5
    path.write_text(json.dumps(table), encoding="utf-8")
    assert "model.window=5" in cli("export", "hf", "other", "elsewhere").error
    assert not Path("elsewhere").exists()
    assert "no run folder" in cli("export", "hf", "nowhere", "elsewhere").error
    assert "no such folder" in cli("import", "hf", "nowhere", "new").error
