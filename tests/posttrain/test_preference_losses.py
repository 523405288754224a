"""Preference losses: hand-worked numbers, plain references written from the papers, and their gradients."""

import math

import pytest
import torch

from scratchlm.posttrain.preference_losses import PREFERENCE_LOSSES, Pairs

ALL = ["dpo", "ipo", "kto", "simpo"]
SETTINGS = {
    "dpo": {"beta": 0.3, "label_smoothing": 0.1},
    "ipo": {"beta": 0.3},
    "kto": {"beta": 0.3, "desirable": 1.2, "undesirable": 0.7},
    "simpo": {"beta": 2.0, "gamma": 0.6},
}


def one_pair(chosen, rejected, reference_chosen=-1.5, reference_rejected=-1.5, tokens=(4, 2)):
    numbers = [torch.tensor([n]) for n in (chosen, rejected, reference_chosen, reference_rejected)]
    return Pairs(*numbers, *(torch.tensor([n]) for n in tokens))


def random_pairs(count=6, dtype=torch.float64):
    numbers = -10 * torch.rand(4, count, dtype=dtype)
    lengths = torch.randint(1, 9, (2, count))
    return Pairs(numbers[0].requires_grad_(), numbers[1].requires_grad_(), *numbers[2:], *lengths)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_hand(name, pairs, settings):
    """One pair after the other, as the papers write them, with plain Python numbers."""
    losses = []
    for c, r, qc, qr, nc, nr in zip(*(column.tolist() for column in pairs), strict=True):
        beta, rc, rr = settings["beta"], c - qc, r - qr
        if name == "dpo":
            e, h = settings["label_smoothing"], beta * (rc - rr)
            losses.append(-(1 - e) * math.log(sigmoid(h)) - e * math.log(sigmoid(-h)))
        elif name == "ipo":
            losses.append((rc - rr - 1 / (2 * beta)) ** 2)
        elif name == "kto":
            good = settings["desirable"] * (1 - sigmoid(beta * (rc - max(0, rr))))
            losses.append(good + settings["undesirable"] * (1 - sigmoid(beta * (max(0, rc) - rr))))
        else:
            losses.append(-math.log(sigmoid(beta * (c / nc - r / nr) - settings["gamma"])))
    return losses


def gradient_by_hand(name, pairs, settings):
    """The derivatives by log p(chosen) and log p(rejected), from the formulas."""
    both = []
    for c, r, qc, qr, nc, nr in zip(*(column.tolist() for column in pairs), strict=True):
        beta, rc, rr = settings["beta"], c - qc, r - qr
        if name == "dpo":
            e, h = settings["label_smoothing"], beta * (rc - rr)
            slope = -beta * ((1 - e) * sigmoid(-h) - e * sigmoid(h))
            both.append((slope, -slope))
        elif name == "ipo":
            slope = 2 * (rc - rr - 1 / (2 * beta))
            both.append((slope, -slope))
        elif name == "kto":
            good, bad = sigmoid(beta * (rc - max(0, rr))), sigmoid(beta * (max(0, rc) - rr))
            both.append(
                (
                    -settings["desirable"] * beta * good * (1 - good),
                    settings["undesirable"] * beta * bad * (1 - bad),
                )
            )
        else:
            slope = -beta * sigmoid(settings["gamma"] - beta * (c / nc - r / nr))
            both.append((slope / nc, -slope / nr))
    return list(zip(*both, strict=True))


def test_all_losses_are_found_by_name():
    assert PREFERENCE_LOSSES.names() == ALL


@pytest.mark.parametrize(
    ("name", "settings", "pair", "loss", "gradient"),
    [
        # by log p(chosen) and log p(rejected); s(-0.1) = 0.4750
        ("dpo", {"beta": 0.1}, one_pair(-1.0, -2.0), 0.6444, (-0.0475, 0.0475)),
        # -0.1 * (0.75 * 0.4750 - 0.25 * 0.5250)
        ("dpo", {"beta": 0.1, "label_smoothing": 0.25}, one_pair(-1.0, -2.0), 0.6694, (-0.0225, 0.0225)),
        ("ipo", {"beta": 0.1}, one_pair(-1.0, -2.0), 16.0, (-8.0, 8.0)),
        ("ipo", {"beta": 0.5}, one_pair(-1.0, -2.0), 0.0, (0.0, 0.0)),
        # -0.1 * s(0.05) s(-0.05) = -0.1 * 0.5125 * 0.4875 and 0.1 * s(0.1) s(-0.1) = 0.1 * 0.5250 * 0.4750
        ("kto", {"beta": 0.1}, one_pair(-1.0, -2.0), 0.9625, (-0.024984, 0.024938)),
        # -2 s(1 - 2) = -0.5379, over 4 tokens and over 2
        ("simpo", {"beta": 2.0, "gamma": 1.0}, one_pair(-4.0, -4.0), 0.3133, (-0.13447, 0.26894)),
    ],
)
def test_worked_examples(name, settings, pair, loss, gradient):
    pair.chosen.requires_grad_(), pair.rejected.requires_grad_()
    found = PREFERENCE_LOSSES.build(name, **settings)(pair)
    assert float(found.detach()) == pytest.approx(loss, abs=5e-5)
    found.backward()
    assert (float(pair.chosen.grad), float(pair.rejected.grad)) == pytest.approx(gradient, abs=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_losses_and_gradients_are_those_of_the_papers_formulas(name):
    pairs, settings = random_pairs(), SETTINGS[name]
    losses = PREFERENCE_LOSSES.build(name, **settings)(pairs)
    torch.testing.assert_close(losses.tolist(), by_hand(name, pairs, settings))
    losses.sum().backward()
    chosen, rejected = gradient_by_hand(name, pairs, settings)
    torch.testing.assert_close(pairs.chosen.grad.tolist(), list(chosen))
    torch.testing.assert_close(pairs.rejected.grad.tolist(), list(rejected))


@pytest.mark.parametrize("name", ["dpo", "kto", "simpo"])
def test_a_pair_is_pulled_in_the_preferred_direction(name):
    pairs = random_pairs(32)
    PREFERENCE_LOSSES.build(name)(pairs).sum().backward()
    assert (pairs.chosen.grad < 0).all()  # descent raises it
    assert (pairs.rejected.grad > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_a_pairs_loss_depends_on_that_pair_alone(name):
    pairs, loss = random_pairs(), PREFERENCE_LOSSES.build(name, **SETTINGS[name])
    alone = [loss(Pairs(*(column[n : n + 1] for column in pairs))) for n in range(len(pairs.chosen))]
    torch.testing.assert_close(torch.cat(alone), loss(pairs), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dpo", "kto", "simpo"])
def test_pairs_that_are_very_far_apart_give_finite_losses_and_gradients(name):
    for ahead in (3000.0, -3000.0):
        chosen, rejected = (torch.tensor([n], requires_grad=True) for n in (-3000.0 + ahead, -3000.0))
        pairs = Pairs(
            chosen,
            rejected,
            torch.tensor([-3000.0]),
            torch.tensor([-3000.0]),
            torch.tensor([1]),
            torch.tensor([1]),
        )
        loss = PREFERENCE_LOSSES.build(name, beta=1.0)(pairs)
        loss.sum().backward()
        assert torch.isfinite(torch.stack([loss.detach(), chosen.grad, rejected.grad])).all()


def test_dpo_begins_at_the_logarithm_of_two_whatever_the_pairs():
    pairs = random_pairs()
    same = pairs._replace(reference_chosen=pairs.chosen.detach(), reference_rejected=pairs.rejected.detach())
    torch.testing.assert_close(
        PREFERENCE_LOSSES.build("dpo")(same), torch.full_like(same.chosen, math.log(2))
    )


def test_rewards_of_dpo_are_beta_times_the_log_ratios_and_those_of_simpo_are_means():
    pair = one_pair(-1.0, -2.0)
    rewards = PREFERENCE_LOSSES.build("dpo", beta=0.1).rewards(pair)
    assert (float(rewards.chosen), float(rewards.rejected)) == pytest.approx((0.05, -0.05))
    rewards = PREFERENCE_LOSSES.build("simpo", beta=2.0).rewards(pair)
    assert (float(rewards.chosen), float(rewards.rejected)) == pytest.approx((-0.5, -2.0))
    assert float(rewards.accuracy) == 1.0


def test_equal_rewards_are_half_a_success():
    pairs = Pairs(*torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -2.0, -0.5], [-3.0] * 3, [-3.0] * 3]))
    rewards = PREFERENCE_LOSSES.build("dpo").rewards(pairs)
    assert rewards.ahead.tolist() == [0.5, 1.0, 0.0]
    assert float(rewards.accuracy) == 0.5


def test_what_a_loss_needs_and_does_not_get_is_named():
    bare = Pairs(torch.tensor([-1.0]), torch.tensor([-2.0]))
    for name in ("dpo", "ipo", "kto"):
        assert PREFERENCE_LOSSES.get(name).needs_reference
        with pytest.raises(ValueError, match=f"{name}: the pairs come without the reference"):
            PREFERENCE_LOSSES.build(name)(bare)
    assert not PREFERENCE_LOSSES.get("simpo").needs_reference
    with pytest.raises(ValueError, match="without their numbers of tokens"):
        PREFERENCE_LOSSES.build("simpo")(bare)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dpo", {"beta": 0.0}, "dpo: beta=0.0: must be above 0"),
        ("simpo", {"beta": math.nan}, "beta=nan: must be a finite number"),
        ("dpo", {"label_smoothing": 0.5}, r"label_smoothing=0.5: .* in \[0, 0.5\)"),
        ("kto", {"desirable": 0.0, "undesirable": 0.0}, "weights are at least 0, one above"),
        ("simpo", {"gamma": -1.0}, "gamma=-1.0: the margin must be at least 0"),
    ],
)
def test_settings_outside_their_range_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        PREFERENCE_LOSSES.build(name, **settings)
