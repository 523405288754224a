"""`train --compare-to`: a run's validations come in, a line that says whether the loss is normal goes out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scratchlm.train.config import RunConfig
    from scratchlm.train.events import Event, OnEvent


def comparing(compare_to: str | None, folder: Path, config: "RunConfig") -> "Callable[[OnEvent], OnEvent]":
    """Wrap a run's watcher so that each validation is followed by a verdict.

    Args:
        compare_to: A shipped curve's name, a curve's file or another run's folder; None: say nothing.
        folder: The run's folder.
        config: The run's settings.

    Raises:
        ValueError: There is no such curve.
    """
    if compare_to is None:
        return lambda on_event: on_event
    from scratchlm.study.reference_curve import REFERENCE_FILE, open_reference
    from scratchlm.train.events import Message, Validated
    from scratchlm.train.folder import RunFolder
    from scratchlm.train.metrics import JsonLines

    curve, metrics = open_reference(compare_to), JsonLines(RunFolder(folder).metrics)
    settings = config.model_dump(mode="json")

    def wrap(on_event: "OnEvent") -> "OnEvent":
        saved: list[object] = []

        def watch(event: "Event") -> None:
            on_event(event)
            if isinstance(event, Validated):
                if not saved:
                    curve.save(folder / REFERENCE_FILE)  # the report shows it beside the run's losses
                    saved.append(curve)
                verdict = curve.judge(metrics.rows(), settings)
                on_event(Message(f"Compared to {curve.name}: {verdict.sentence}."))

        return watch

    return wrap
