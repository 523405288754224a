"""Claims about how soon cells reach a number, and where their ends are alike."""

import numpy as np
import pytest

from scratchlm.lab.figures import Learning, learning_figure
from scratchlm.lab.soon import equal_over, how_soon, soon_markdown, soon_section, target_of


def curve(label, *, steps=(10, 20, 30), tokens=100, flops=1e6, seconds=0.5, losses=((3.0, 2.0, 1.0),)):
    steps = np.array(steps, dtype=np.float64)
    places = {
        "step": steps,
        "tokens": tokens * steps,
        "flops": flops * tokens * steps,
        "seconds": seconds * steps,
    }
    return Learning(label, places, np.array(losses), False)


def test_the_place_lies_on_the_straight_line_between_two_validations():
    base, other = curve("base"), curve("other", losses=((2.0, 0.5, 0.4), (4.0, 2.5, 0.6)))
    found = how_soon([base, other, curve("worse", losses=((3.0, 2.5, 2.0),))], 1.25)
    # base: 1.25 between 2.0 at 20 and 1.0 at 30 -> 27.5; other: mean 3, 1.5, 0.5 -> 20 + 10 / 4
    assert found[0].places == pytest.approx({"step": 27.5, "tokens": 2750, "flops": 2.75e9, "seconds": 13.75})
    assert found[1].places["step"] == pytest.approx(22.5)
    assert found[2].places is None
    assert how_soon([base], 5.0)[0].places["step"] == 10, "reached at the first validation"


def test_the_target_is_what_the_base_has_at_its_end_unless_somebody_asks():
    curves = [curve("other"), curve("base", losses=((3.0, 2.0, 1.5), (3.0, 2.0, 1.7)))]
    assert target_of(curves, "base", None) == pytest.approx(1.6)
    assert target_of(curves, "base", 2.0) == 2.0
    assert target_of(curves, "gone", None) is None
    section = soon_section(curves, "base", None, "nats per token")
    assert section["words"] == "1.600 nats per token, what base has at its end"
    assert soon_section(curves[:1], "other", None, "nats") is None
    assert "| other | 24 | 2.40 k | 2.4e09 | 12 s |" in soon_markdown(section)


def test_a_base_that_diverged_is_no_target():
    lost = curve("base", losses=((3.0, np.nan, np.nan),))
    assert target_of([lost], "base", None) is None
    assert how_soon([lost], 1.0)[0].places is None


def test_ends_are_alike_in_tokens_before_anything_else():
    assert equal_over([curve("a"), curve("b")]) == "tokens"
    assert equal_over([curve("a"), curve("b", tokens=200, flops=5e5)]) == "flops"
    assert equal_over([curve("a"), curve("b", tokens=200)]) == "step"
    assert equal_over([curve("a"), curve("b", tokens=200, steps=(1, 2, 3))]) is None
    assert equal_over([]) is None


def test_curves_that_end_far_apart_are_drawn_over_a_logarithmic_axis():
    long = curve("long", steps=(1000, 2000, 3000))
    scales = [
        learning_figure([curve("a"), other], "tokens", None, "nats", "wide").figure.axes[0].get_xscale()
        for other in (curve("b"), long)
    ]
    assert scales == ["linear", "log"]
