"""Results of attention come in; one table per setting, lengths down and ways across, goes out."""

from collections.abc import Callable

from scratchlm.bench.attention import AttentionResult
from scratchlm.bench.tables import Table, milliseconds, size

WORDS = {"forward": "forward", "backward": "backward", "both": "forward + backward"}
"""How a title calls a scope."""


def tables(results: list[AttentionResult]) -> list[Table]:
    """Return times with rates for each setting and scope, then the memory of each setting."""
    found: dict[tuple[str, int, str], list[AttentionResult]] = {}
    for result in results:
        found.setdefault((result.case.precision, result.case.d_head, result.case.scope), []).append(result)
    made = []
    for group in found.values():
        unit, name = _unit(group)
        title = f"Attention {_setting(group[0])}: median ms ({name})"
        made.append(_pivot(title, group, _time(unit), lambda result: result.median_ms))
    scopes = {scope for _, _, scope in found}
    weighed = next((scope for scope in ("both", "backward", "forward") if scope in scopes), "")
    for (_, _, scope), group in found.items():
        if scope == weighed and any(result.peak_bytes for result in group):
            title = f"Attention {_setting(group[0])}: peak memory"
            made.append(_pivot(title, group, _memory("peak_bytes"), lambda result: result.peak_bytes))
        if any(result.kept_bytes for result in group):
            title = f"Attention {_setting(group[0])}: kept for the backward pass"
            made.append(_pivot(title, group, _memory("kept_bytes"), lambda result: result.kept_bytes))
    return made


def _pivot(
    title: str,
    group: list[AttentionResult],
    text: Callable[[AttentionResult], str],
    value: Callable[[AttentionResult], float | None],
) -> Table:
    """Lengths down, ways across; the smallest of each row is marked."""
    names = list(dict.fromkeys(result.case.way for result in group))
    lengths = list(dict.fromkeys(result.case.tokens for result in group))
    cells = {(result.case.tokens, result.case.way): result for result in group}
    rows, best = [], set()
    for number, tokens in enumerate(lengths):
        row = [cells.get((tokens, name)) for name in names]
        rows.append([f"{tokens:,}", *("" if cell is None else text(cell) for cell in row)])
        values = {
            column: found
            for column, cell in enumerate(row, start=1)
            if cell is not None and (found := value(cell)) is not None
        }
        if len(values) > 1:
            best.add((number, min(values, key=lambda column: values[column])))
    return Table(title, ["tokens", *names], rows, 0, frozenset(best))


def _setting(result: AttentionResult) -> str:
    case = result.case
    kind = "causal" if case.causal else "not causal"
    return (
        f"{WORDS[case.scope]}, {kind}, {case.precision}, d_head {case.d_head}, "
        f"batch {case.batch}, {case.heads} head{'s' if case.heads > 1 else ''}"
    )


def _unit(group: list[AttentionResult]) -> tuple[float, str]:
    fastest = max((result.flops_per_second or 0.0 for result in group), default=0.0)
    return (1e12, "TFLOP/s") if fastest >= 10e12 else (1e9, "GFLOP/s")


def _time(unit: float) -> Callable[[AttentionResult], str]:
    def text(result: AttentionResult) -> str:
        if result.median_ms is None or result.flops_per_second is None:
            return _absent(result)
        return f"{milliseconds(result.median_ms)} ({milliseconds(result.flops_per_second / unit)})"

    return text


def _memory(field: str) -> Callable[[AttentionResult], str]:
    def text(result: AttentionResult) -> str:
        if result.status != "measured":
            return _absent(result)
        num_bytes = getattr(result, field)
        return "" if num_bytes is None else size(num_bytes)

    return text


def _absent(result: AttentionResult) -> str:
    """Short words; "out of memory" with what it needs where that is known."""
    needs = result.note.removeprefix("needs about ")
    if result.status == "out of memory" and needs:
        return f"out of memory: {needs}"
    return result.status
