"""What the steps left out in a row read is written down, and reads back as JSON."""

import json
from typing import NamedTuple

import torch
from torch import Tensor

from scratchlm.data.loader import Batches
from scratchlm.train.guard import LeftOut
from scratchlm.train.record import write_batches


class _Scored(NamedTuple):
    inputs: Tensor
    reference: Tensor


class _Answers(Batches):
    """Two answers a step; those of the first steps are gone."""

    rows_per_step, fingerprint = 2, ""

    def rows(self, step, first, count):
        return _Scored(torch.tensor([[step, 1], [step, 2]]), torch.tensor([0.5, float("nan")]))

    def again(self, step):
        return super().again(step) if step > 6 else None


def not_json(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_each_step_is_a_line_with_its_reason_and_all_that_it_read(tmp_path):
    path = tmp_path / "unusable-batches-0000008.jsonl"
    left_out = [LeftOut(7, 6, "the loss is inf"), LeftOut(8, 9, "the loss is nan")]
    write_batches(path, left_out, _Answers())
    gone, kept = [json.loads(line, parse_constant=not_json) for line in path.read_text().splitlines()]
    assert gone == {"step": 7, "data_step": 6, "reason": "the loss is inf", "starts": None, "ids": None}
    assert kept == {
        "step": 8,
        "data_step": 9,
        "reason": "the loss is nan",
        "starts": None,
        "ids": [[9, 1], [9, 2]],
        "reference": [0.5, "nan"],
    }
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
