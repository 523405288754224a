"""The live view of a run: events come in, a panel is drawn; plain lines where there is no terminal."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scratchlm.cli.console import duration, printable
from scratchlm.cli.run_state import (
    BLOCKS,
    PLAIN_BLOCKS,
    TELLING,
    Phase,
    RunState,
    bits_per_byte,
    conversation,
    distance,
    figures,
    numbers,
    sparkline,
)
from scratchlm.train import events

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

MAX_WIDTH = 92
"""Wider panels are harder to read."""
LABEL = 13
"""Width of the left column."""
REFRESH_PER_SECOND = 6
"""Drawing takes a few milliseconds, which the training loses."""
SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal: one line of progress this often."""


@contextlib.contextmanager
def watch(title: str) -> Iterator[events.OnEvent]:
    """Yield the `on_event` of a run: a live panel on a terminal, lines of plain text anywhere else."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield PlainView(title).take
        return
    from rich.live import Live

    state = RunState(title)
    view = LiveView(state, console)
    with Live(
        get_renderable=view.render,
        console=console,
        refresh_per_second=REFRESH_PER_SECOND,
        vertical_overflow="crop",
    ):
        try:
            yield state.take
        finally:
            view.finished = True


class LiveView:
    """Draws a `RunState`."""

    def __init__(self, state: RunState, console: "Console") -> None:
        """Draw `state` on `console`."""
        self.state, self.console = state, console
        self.finished = False
        """Whether the last picture is drawn: it shows all of the sample."""
        self._blocks = PLAIN_BLOCKS if console.options.ascii_only else BLOCKS

    def render(self) -> "RenderableType":
        """The panel with the latest sample below it."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        width = min(self.console.width, MAX_WIDTH)
        lines = [*self._checklist(width - 4), *self._figures(width - 4)]
        panel = Panel(
            Text("\n").join(lines),
            title=Text(self.state.title, "bold"),
            title_align="left",
            border_style="dim",
            width=width,
        )
        return Group(panel, *self._sample(width, len(lines) + 2))

    def _checklist(self, width: int) -> "list[Text]":
        from rich.text import Text

        lines = [self._phase_line(phase, width) for phase in self.state.phases]
        step = self.state.step
        if step is not None:
            training = Phase("training", done=step.step, total=step.total_steps)
            if step.step == step.total_steps or self.finished:
                training.seconds = self.state.training_seconds
                training.detail = f"{step.step:,} of {step.total_steps:,} steps"
            lines.append(self._phase_line(training, width, left=step.seconds_left))
        elif self.state.message and all(phase.seconds is not None for phase in self.state.phases):
            lines.append(self._phase_line(Phase("training", "getting ready"), width))
            message = Text(self.state.message, "dim")
            lines.extend([Text(""), *message.wrap(self.console, width)])
        return lines

    def _phase_line(self, phase: Phase, width: int, left: float | None = None) -> "Text":
        from rich.text import Text

        ascii_only = self._blocks is PLAIN_BLOCKS
        if phase.seconds is not None:
            mark, style = ("x" if ascii_only else "\u2713"), "green"
            right = duration(phase.seconds)
            middle = Text(phase.detail, "dim")
        else:
            mark, style = ("*" if ascii_only else "\u25cf"), "cyan"
            right = "" if left is None else f"{duration(left)} left"
            middle = self._bar(phase) if phase.total else Text(phase.detail, "dim")
        line = Text.assemble((f"{mark} ", style), f"{phase.name:<{LABEL}}", no_wrap=True, overflow="ellipsis")
        room = width - line.cell_len - len(right) - 1
        middle.truncate(max(0, room), overflow="ellipsis", pad=True)
        return line.append_text(middle).append(f" {right}" if right else "", "dim")

    def _bar(self, phase: Phase, width: int = 30) -> "Text":
        from rich.text import Text

        assert phase.total, phase
        filled = min(width, round(width * phase.done / phase.total))
        full, rest = ("=", "-") if self._blocks is PLAIN_BLOCKS else ("\u2501", "\u2500")
        count = f"  {phase.done:,} / {phase.total:,}" if phase.name == "training" else f"  {phase.detail}"
        return Text.assemble(
            (full * filled, "cyan"), (rest * (width - filled), "bright_black"), (count, "dim")
        )

    def _figures(self, width: int) -> "list[Text]":
        from rich.text import Text

        state = self.state
        if state.step is None:
            return []
        floor = state.valid.floor_loss if state.valid else None
        lines = [Text("")]
        leading = state.step.figures.get(state.leading)
        if leading is not None:
            lines.append(self._curve(TELLING[state.leading], leading, state.followed, width))
        lines.append(self._curve("loss", state.step.loss, state.losses, width, floor=floor))
        if state.valid is not None:
            valid = state.valid
            best = ", the best so far" if valid.best else ""
            lines.append(
                _line(
                    ("validation", ""),
                    (f"{valid.loss:<8.3f}", "bold"),
                    (f"{bits_per_byte(valid)} at step {valid.step:,}{best}", "dim"),
                    width=width,
                )
            )
            if valid.figures:
                lines.append(_line(("", ""), (numbers(valid.figures), ""), width=width))
            if valid.floor_loss is not None:
                lines.append(
                    _line(
                        ("floor", ""),
                        (f"{valid.floor_loss:<8.3f}", "bold"),
                        (
                            f"no model can beat it; {valid.loss - valid.floor_loss:.3f} nats per token to go",
                            "dim",
                        ),
                        width=width,
                    )
                )
        step = state.step
        further = {name: value for name, value in step.figures.items() if name != state.leading}
        if further:
            lines.append(_line(("this step", ""), (numbers(further), ""), width=width))
        used = f", MFU {step.mfu:.0%}" if step.mfu is not None else ""
        speed = (
            f"{state.speed:,.0f} tokens/s{used}, learning rate {step.lr:.2g}, gradient {step.grad_norm:.2g}"
        )
        lines.append(_line(("speed", ""), (speed, ""), width=width))
        seen = f"{step.tokens:,} tokens, {step.epochs:.2f} epochs, {step.tokens // step.step:,} a step"
        if step.tokens_per_parameter is not None:
            seen += f", {step.tokens_per_parameter:.3g} a parameter"
        lines.append(_line(("seen", ""), (seen, "dim"), width=width))
        return lines

    def _curve(
        self, name: str, last: float, values: list[float], width: int, floor: float | None = None
    ) -> "Text":
        """The last value and a curve of all."""
        curve = sparkline(values, min(40, width - LABEL - 12), floor=floor, blocks=self._blocks)
        return _line((name, ""), (f"{last:<z8.3f}", "bold"), (curve, "cyan"), width=width)

    def _sample(self, width: int, height_above: int) -> "list[Text]":
        from rich.text import Text

        if not self.state.samples:
            return []
        title = Text(f"\nafter step {self.state.samples[0].step:,} it writes:", "dim")
        text = printable(self.state.sample_text(everything=self.finished))
        lines = Text(text).wrap(self.console, width)
        room = len(lines) if self.finished else max(1, self.console.height - height_above - 3)
        return [title, *lines[-room:]]


class PlainView:
    """Prints a run as lines of text: for logs, pipes and tests."""

    def __init__(self, title: str) -> None:
        """Start with the title."""
        self._last_line = time.monotonic()
        print(f"{title}", flush=True)

    def take(self, event: events.Event) -> None:
        """Print what `event` says."""
        text = self._text(event)
        if text:
            self._last_line = time.monotonic()
            print(text, flush=True)

    def _text(self, event: events.Event) -> str:
        match event:
            case events.PhaseStarted():
                return f"{event.name}: {event.detail or 'started'}"
            case events.PhaseEnded():
                found = figures(event.summary)
                return f"{event.name}: done in {duration(event.seconds)}" + (f", {found}" if found else "")
            case events.PhaseProgress() if event.total and self._is_time():
                return f"{event.name}: {100 * event.done / event.total:.0f} % {event.detail}".rstrip()
            case events.StepEnded() if event.step in (1, event.total_steps) or self._is_time():
                more = f"{numbers(event.figures)}, " if event.figures else ""
                return (
                    f"step {event.step}/{event.total_steps}: loss {event.loss:z.3f}, {more}"
                    f"{event.tokens_per_second:,.0f} tokens/s, {duration(event.seconds_left)} left"
                )
            case events.Validated():
                away = distance(event)
                solving = event.bits_per_byte is None
                found = f"step {event.step}: validation {'' if solving else 'loss '}{event.loss:.3f}"
                found += f"{' ' if solving else ', '}{bits_per_byte(event)}"
                found += f", {numbers(event.figures)}" if event.figures else ""
                return f"{found}, {away}" if away else found
            case events.Sampled():
                return f"after step {event.step} it writes:\n{conversation(event).strip()}\n"
            case events.Message():
                return event.text
        return ""

    def _is_time(self) -> bool:
        return time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES


def _line(label: tuple[str, str], *parts: tuple[str, str], width: int) -> "Text":
    """One line: the label in its column, then the parts; too long ones end in dots."""
    from rich.text import Text

    line = Text.assemble((f"  {label[0]:<{LABEL}}", label[1]), *parts, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line
