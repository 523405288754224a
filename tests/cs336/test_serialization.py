import io

import pytest
import torch

from scratchlm.cs336 import basics
from scratchlm.cs336.serialization import load_training_state, save_training_state
from scratchlm.optim.sgd import SGD


class Net(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.fc1, self.fc2 = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)
        self.tied = self.fc2.weight
        self.register_buffer("count", torch.tensor(seed))

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


def trained(kind, seed, **settings):
    model = Net(seed)
    optimizer = kind(model.parameters(), lr=1e-2, **settings)
    for _ in range(5):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(4, 6)).square().mean().backward()
    optimizer.step()


def assert_same_optimizer(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for index, entries in one["state"].items():
        assert entries.keys() == other["state"][index].keys()
        for key, value in entries.items():
            found = other["state"][index][key]
            assert type(found) is type(value)
            assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found


KINDS = [
    (basics.get_adamw_cls(), {"betas": (0.9, 0.999), "eps": 1e-8}),
    (SGD, {"momentum": 0.9}),
    (torch.optim.AdamW, {"betas": (0.9, 0.999)}),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("place", ["path", "text path", "file"])
def test_model_and_optimizer_come_back_exactly(kind, settings, place, tmp_path):
    model, optimizer = trained(kind, 1, **settings)
    path = tmp_path / "checkpoint.pt"
    out = path.open("w+b") if place == "file" else {"path": path, "text path": str(path)}[place]
    basics.run_save_checkpoint(model, optimizer, 10, out)
    if place == "file":
        out.seek(0)

    other, other_optimizer = trained(kind, 2, **settings)
    assert basics.run_load_checkpoint(out, other, other_optimizer) == 10
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])
    assert_same_optimizer(optimizer, other_optimizer)
    for pair in ((model, optimizer), (other, other_optimizer)):
        step(*pair)
    assert torch.equal(model.fc1.weight, other.fc1.weight)
    assert_same_optimizer(optimizer, other_optimizer)


def test_a_file_object_in_memory_will_do():
    model, optimizer = trained(basics.get_adamw_cls(), 1)
    out = io.BytesIO()
    save_training_state(model, optimizer, 7, out)
    other, other_optimizer = trained(basics.get_adamw_cls(), 2)
    assert load_training_state(io.BytesIO(out.getvalue()), other, other_optimizer) == 7
    assert_same_optimizer(optimizer, other_optimizer)


def test_groups_of_another_run_are_replaced_by_the_saved_ones(tmp_path):
    model, optimizer = trained(basics.get_adamw_cls(), 1, betas=(0.5, 0.6))
    basics.run_save_checkpoint(model, optimizer, 3, tmp_path / "a")
    other, other_optimizer = trained(basics.get_adamw_cls(), 1)
    basics.run_load_checkpoint(tmp_path / "a", other, other_optimizer)
    assert other_optimizer.param_groups[0]["betas"] == (0.5, 0.6)


def test_the_file_is_plain_safetensors_without_pickle(tmp_path):
    from safetensors.torch import load_file

    model, optimizer = trained(basics.get_adamw_cls(), 1)
    basics.run_save_checkpoint(model, optimizer, 3, tmp_path / "a")
    tensors = load_file(tmp_path / "a")
    assert torch.equal(tensors["model/fc1.weight"], model.fc1.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    model, optimizer = trained(SGD, 1)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"other: no checkpoint of run_save_checkpoint"):
        basics.run_load_checkpoint(tmp_path / "other", model, optimizer)
    (tmp_path / "noise").write_bytes(b"\x80\x04noise")
    with pytest.raises(ValueError, match=r"noise: not a readable safetensors file"):
        basics.run_load_checkpoint(tmp_path / "noise", model, optimizer)
    with pytest.raises(ValueError, match=r"missing: cannot be read"):
        basics.run_load_checkpoint(tmp_path / "missing", model, optimizer)


def test_a_setting_that_only_pickle_could_save_is_refused(tmp_path):
    model, optimizer = trained(SGD, 1)
    optimizer.param_groups[0]["hook"] = print
    with pytest.raises(ValueError, match="without pickle"):
        basics.run_save_checkpoint(model, optimizer, 3, tmp_path / "a")
    assert not list(tmp_path.iterdir())
