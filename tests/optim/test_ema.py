import contextlib

import pytest
import torch
from torch.nn import Parameter

from scratchlm.optim.ema import EMA


def make_named(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {
        "w": Parameter(torch.randn(3, 2, generator=generator).to(dtype)),
        "gain": Parameter(torch.randn(2, generator=generator).to(dtype)),
        "frozen": Parameter(torch.ones(2), requires_grad=False),
    }


def move(named, step):
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in named.values():
            p.add_(torch.randn(p.shape, generator=generator).to(p.dtype))


def test_the_average_is_the_formula_written_out():
    named = make_named()
    ema = EMA(named.items(), 0.5)
    expected = {name: p.detach().clone() for name, p in named.items()}
    for step in range(1, 12):
        move(named, step)
        ema.update_()
        kept = min(0.5, (1 + step) / (10 + step))
        expected = {name: kept * a + (1 - kept) * named[name].detach() for name, a in expected.items()}
    state = ema.state()
    for name in ("w", "gain"):
        torch.testing.assert_close(state[name], expected[name])
    assert "frozen" not in state


def test_weights_that_stand_still_are_their_average():
    named = make_named()
    ema = EMA(named.items(), 0.9)
    for _ in range(5):
        ema.update_()
    assert all(torch.equal(ema.state()[name], named[name]) for name in ("w", "gain"))


def test_swapping_shows_the_average_and_gives_the_weights_back_bit_for_bit():
    named = make_named()
    ema = EMA(named.items(), 0.9)
    move(named, 1)
    ema.update_()
    weights, places = named["w"].detach().clone(), named["w"].data_ptr()
    with contextlib.suppress(KeyboardInterrupt), ema.swapped():
        assert torch.equal(named["w"], ema.state()["w"])
        assert not torch.equal(named["w"], weights)
        raise KeyboardInterrupt
    assert torch.equal(named["w"], weights)
    assert named["w"].data_ptr() == places


def test_an_average_goes_on_from_its_saved_state():
    straight, stopped = make_named(), make_named()
    one, two = EMA(straight.items(), 0.9), EMA(stopped.items(), 0.9)
    for step in range(6):
        move(straight, step)
        move(stopped, step)
        one.update_()
        two.update_()
        saved = {name: tensor.clone() for name, tensor in two.state().items()}
        two = EMA(stopped.items(), 0.9)
        two.restore(saved)
    assert all(torch.equal(value, two.state()[name]) for name, value in one.state().items())


def test_it_begins_again_at_a_models_weights():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    ema = EMA(model.named_parameters(), 0.9)
    torch.nn.init.ones_(model[0].weight)
    ema.restore(model.state_dict())  # with buffers, which are no parameters
    assert torch.equal(ema.state()["0.weight"], torch.ones(2, 3))


def test_half_precision_weights_have_a_float32_average():
    named = make_named(torch.bfloat16)
    ema = EMA(named.items(), 0.999)
    before = named["w"].detach().clone()
    ema.update_()
    assert ema.state()["w"].dtype == torch.float32
    with ema.swapped():
        pass
    assert torch.equal(named["w"], before)


def test_a_foreign_average_is_refused_and_changes_nothing():
    ema = EMA(make_named().items(), 0.9)
    before = ema.state()["w"].clone()
    with pytest.raises(ValueError, match=r"gain is missing, the model's is \(2,\)"):
        ema.restore({"w": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"w is \(3, 3\), the model's is \(3, 2\)"):
        ema.restore({"w": torch.zeros(3, 3), "gain": torch.zeros(2)})
    assert torch.equal(ema.state()["w"], before)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, float("nan")])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay=.*must lie between 0 and 1"):
        EMA(make_named().items(), decay)
