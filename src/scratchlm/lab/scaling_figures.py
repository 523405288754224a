"""Fitted scaling laws come in, drawings for their page come out, in the page's own colours.

isoflop      loss over parameters, a colour for each budget: runs, parabola, lowest point
growth       best parameters and best tokens over compute: a point for each budget, the line and its band
agreement    measured losses over those that L(N, D) says; predicted runs with their intervals
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scratchlm.lab.figures import look
from scratchlm.lab.isoflop import IsoFlop, PowerLaw, Range, Valley
from scratchlm.lab.scaling import HeldOut, Scaling
from scratchlm.study.drawing import Drawing, drawn
from scratchlm.study.plots import ACCENT, INK, MUTED, SERIES, Shape, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOM = 0.3
"""Of the range of compute, to either side of the line."""


def isoflop_figure(isoflop: IsoFlop, shape: Shape) -> Drawing:
    """Draw each budget's losses over the number of parameters, with its parabola."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 3.9, "narrow": 3.3}[shape])
    for index, valley in enumerate(isoflop.valleys):
        colour, dashes = look(index)
        runs = valley.group.runs
        axes.plot(
            [run.parameters for run in runs], [run.loss for run in runs], "o", color=colour, markersize=4.2
        )
        if valley.curve is None or valley.parameters is None:
            continue
        x = np.linspace(np.log(valley.fitted[0]), np.log(valley.fitted[-1]), 80)
        c0, c1, c2 = valley.curve
        axes.plot(np.exp(x), c0 + c1 * x + c2 * x**2, color=colour, linewidth=1.5, linestyle=dashes)
        axes.plot([valley.parameters.value], [valley.loss], "D", color=INK, markersize=5, zorder=5)
        if valley.parameters.low is not None and valley.parameters.high is not None:
            ends = [valley.parameters.low, valley.parameters.high]
            axes.plot(ends, [valley.loss] * 2, color=INK, linewidth=1.6, zorder=5)
    style(axes, "loss, nats per token", num_ticks=6)
    _logarithmic(axes, "x")
    axes.set_xlabel("parameters", color=MUTED)
    return drawn(figure, f"isoflop-{shape}", "Loss over parameters, a parabola for each budget of compute")


def growth_figure(isoflop: IsoFlop, shape: Shape) -> Drawing:
    """Draw the best size and the best number of tokens over compute."""
    across = shape == "wide"
    figure, panels = new_figure(
        shape, rows=1 if across else 2, columns=2 if across else 1, height=2.9 if across else 5.0
    )
    for axes, name in zip(panels, ("parameters", "tokens"), strict=True):
        _growth(axes, isoflop.valleys, getattr(isoflop, name), name)
    return drawn(figure, f"growth-{shape}", "The best number of parameters and of tokens over compute")


def agreement_figure(scaling: Scaling, shape: Shape) -> Drawing:
    """Draw measured over fitted losses; runs that were predicted unseen stand out with their intervals."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 3.6, "narrow": 3.2}[shape])
    assert scaling.chinchilla is not None, scaling.problem
    held = () if scaling.held_out is None else scaling.held_out.checks
    unseen = {check.run for check in held}
    seen = [run for valley in scaling.isoflop.valleys for run in valley.group.runs if run not in unseen]
    fitted = [scaling.chinchilla.predict(run.parameters, run.tokens).value for run in seen]
    axes.plot(fitted, [run.loss for run in seen], "o", color=MUTED, alpha=0.6, markersize=4.5, zorder=2)
    for check in held:
        low, high = check.stated.low, check.stated.high
        if low is not None and high is not None:
            axes.plot([low, high], [check.run.loss] * 2, color=SERIES[1], linewidth=1.4, zorder=3)
    stated = [check.stated.value for check in held]
    axes.plot(stated, [check.run.loss for check in held], "o", color=SERIES[1], markersize=5, zorder=4)
    losses = [*fitted, *stated, *(run.loss for run in [*seen, *unseen])]
    ends = [min(losses), max(losses)]
    axes.plot(ends, ends, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    style(axes, "measured loss, nats per token", num_ticks=6)
    axes.set_xlabel("loss by the law", color=MUTED)
    axes.margins(x=0.04)
    return drawn(figure, f"agreement-{shape}", "Measured losses over those that the fitted law says")


def held_words_of(held: HeldOut | None) -> str:
    """What stands below the drawing."""
    grey = "Grey: runs that were fitted."
    if held is None:
        return grey
    return f"{grey} Orange: runs that were predicted from {held.source}, with the stated 95 % interval."


def _growth(axes: "Axes", valleys: Sequence[Valley], law: PowerLaw, name: str) -> None:
    known: list[tuple[float, Range]] = [
        (valley.group.budget, getattr(valley, name)) for valley in valleys if valley.parameters is not None
    ]
    budgets = np.log([budget for budget, _ in known])
    room = ROOM * (budgets.max() - budgets.min())
    places = np.exp(np.linspace(budgets.min() - room, budgets.max() + room, 60))
    line = [law.at(float(place)) for place in places]
    axes.plot(places, [one.value for one in line], color=ACCENT, linewidth=1.6, zorder=3)
    if line[0].low is not None:
        axes.fill_between(
            places, [one.low for one in line], [one.high for one in line],  # type: ignore[misc] - asked for above
            color=ACCENT, alpha=0.16, linewidth=0, zorder=2,
        )  # fmt: skip
    for budget, best in known:
        if best.low is not None and best.high is not None:
            axes.plot([budget] * 2, [best.low, best.high], color=INK, linewidth=1.4, zorder=4)
        axes.plot([budget], [best.value], "D", color=INK, markersize=4.5, zorder=5)
    style(axes, f"best number of {name}", num_ticks=5)
    _logarithmic(axes, "x")
    _logarithmic(axes, "y")
    axes.set_xlabel("compute, FLOPs", color=MUTED)


def _logarithmic(axes: "Axes", which: str) -> None:
    """A logarithmic axis with few ticks: one for each power of ten, or a few between where there is one."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 4.0, 7.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.minorticks_off()


def short(value: float) -> str:
    """A large number at a tick.

    Example: 20_000 -> "20 k", 3e9 -> "3 G", 6e18 -> "6e18".
    """
    if value >= 1e13 or value < 1:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"
