r"""Runs of one recipe with different seeds come in; an expected loss curve and verdicts on other runs go out.

    at every validation step, over the losses l_1 .. l_n of n seeds:
        mean      = sum(l) / n
        spread    = sqrt( mean of (l - mean)^2 * n / (n - 1) over this step and its two neighbours )
        tolerance = max( t * spread * sqrt(1 + 1/n),  0.5 % of the mean )       t: Student's, n - 1 degrees

    normal          the newest loss lies within mean +- tolerance
    too high        it lies above, and has since step k; `better` likewise below

"Is my loss normal?" can be answered where somebody has made the same run before: how far seeds lie apart
says how far another run may. A few seeds tell a spread badly, and t is large for few: 98 of 100 equal runs
shall be called normal, and 274 of 280 were (eight seeds of a model with 0.1 M parameters, whose spread is
2.4 % of the loss; every three of them judging the other five). sqrt(1 + 1/n) adds that the mean is an
estimate too. A lucky seed stays lucky (losses 120 steps apart correlate by 0.9), so more steps tell little
more: the neighbours only keep three losses that happen to agree from looking certain. The 0.5 % leave room
for other processors and versions, whose rounding acts like another seed. Only equal settings are compared
(compare.same_settings).

Source: the prediction interval of a normal sample, e.g. Hahn and Meeker 1991, "Statistical Intervals", 4.7.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scratchlm.runtime import write_text_atomically
from scratchlm.study.compare import MISSING, data_facts, facts, is_run, same_settings, unequal
from scratchlm.study.run_record import RunRecord, number, read_run

if TYPE_CHECKING:
    from scratchlm.train.config import RunConfig

FOLDER = Path(__file__).parents[1] / "recipes" / "curves"
"""Where the curves of the shipped recipes lie: recipes/curves/NAME.json."""
REFERENCE_FILE = "reference.json"
"""In a run folder: the curve that the run is compared with, where somebody asked for one."""
FORMAT, VERSION = "scratchlm reference curve", 1

STUDENT = (31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764)
"""99th percentiles of Student's t for 1 .. 10 degrees of freedom: 1 in 100 lies above, 1 in 100 below."""
LEAST_SHARE = 0.005
"""Share of the mean that is normal whatever the spread."""
LONELY_SHARE = 0.05
"""The same where there is one run only: it called 47 of 56 pairs of the seeds above normal."""
MAX_NAMED = 3
"""Settings that a sentence names before it counts."""

HARDWARE = ("processor", "cores", "threads", "gpu", "memory_bytes")
VERSIONS = ("scratchlm", "commit", "python", "torch")


class Expected(NamedTuple):
    """The expected loss at one step."""

    step: int
    tokens: int
    mean: float
    tolerance: float


class Verdict(NamedTuple):
    """What a reference says about a run."""

    kind: Literal["normal", "too high", "better", "not comparable"]
    sentence: str
    """For people: "too high from step 300 on: 1.912 at step 400, where 3 seeds gave 1.742 +- 0.031"."""
    step: int | None = None
    """Since which step the loss is too high, or better."""

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class ReferenceCurve:
    """The validation losses of equal runs with different seeds, and how they were made."""

    name: str
    """The recipe."""
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    tokens: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]
    """For each step the loss of each seed, in nats per token."""
    config: Mapping[str, Any]
    """All settings of the first run."""
    data: Mapping[str, Any]
    """How many tokens there were, and the tokenizer's fingerprint."""
    hardware: Mapping[str, Any]
    versions: Mapping[str, Any]
    seconds: tuple[float, ...]
    """Training time of each seed."""

    @property
    def fingerprint(self) -> str:
        """A short name of the settings: equal for runs that can be compared."""
        text = json.dumps(same_settings(self.config), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]

    @property
    def expected(self) -> list[Expected]:
        """Mean and tolerance at every step."""
        means = [sum(losses) / len(losses) for losses in self.losses]
        tolerances = [self._tolerance(index, means[index]) for index in range(len(means))]
        return [Expected(*row) for row in zip(self.steps, self.tokens, means, tolerances, strict=True)]

    @property
    def basis(self) -> str:
        """What is called normal, in a few words."""
        if len(self.seeds) == 1:
            return f"within {100 * LONELY_SHARE:g} % of the loss, as there is one run only"
        return f"where 98 of 100 equal runs lie, as far as {len(self.seeds)} seeds tell"

    @classmethod
    def from_runs(cls, records: Sequence[RunRecord], *, name: str = "") -> "ReferenceCurve":
        """The curve of runs that differ by their seed alone.

        Args:
            records: Runs that were trained to their end.
            name: The recipe; the first run's by default.

        Raises:
            ValueError: A run is not finished, two have the same seed, or they were made differently.
        """
        _refuse_unequal(records)
        rows = [{row["step"]: row for row in record.valid} for record in records]
        common = [
            step for step in rows[0] if all(number(own.get(step, {}), "loss") is not None for own in rows)
        ]
        if not common:
            raise ValueError("these runs were validated at no common step; use the same train.eval_every.")
        first = records[0]
        return cls(
            name=name or first.name,
            seeds=tuple(_seed(record) for record in records),
            steps=tuple(common),
            tokens=tuple(int(rows[0][step]["tokens"]) for step in common),
            losses=tuple(tuple(float(own[step]["loss"]) for own in rows) for step in common),
            config=first.config,
            data=data_facts(first.folder),
            hardware={key: first.environment.get(key) for key in HARDWARE},
            versions={key: first.environment.get(key) for key in VERSIONS},
            seconds=tuple(round(facts(record).seconds or 0.0, 1) for record in records),
        )

    @classmethod
    def find(cls, recipe: str) -> "ReferenceCurve | None":
        """The shipped curve of a recipe, or None where there is none."""
        return cls.load(FOLDER / f"{recipe}.json") if recipe in names() else None

    @classmethod
    def load(cls, path: Path) -> "ReferenceCurve":
        """Read a curve's file.

        Raises:
            ValueError: It is no curve, or one of a newer format.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"{path}: no such file; shipped curves: {', '.join(names()) or 'none'}."
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}: no reference curve, not valid JSON ({error}).") from None
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise ValueError(
                f"{path}: no reference curve; make one with: scratchlm runs curve RUN... -o FILE."
            )
        if tree.get("version") != VERSION:
            raise ValueError(
                f"{path}: version {tree.get('version')}; this scratchlm reads version {VERSION}."
            )
        try:
            points = tree["points"]
            return cls(
                name=str(tree["name"]), seeds=tuple(tree["seeds"]), config=dict(tree["config"]),
                steps=tuple(int(point["step"]) for point in points),
                tokens=tuple(int(point["tokens"]) for point in points),
                losses=tuple(tuple(map(float, point["losses"])) for point in points),
                data=dict(tree["data"]), hardware=dict(tree["hardware"]), versions=dict(tree["versions"]),
                seconds=tuple(tree["seconds"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: a damaged reference curve ({error!r}); make it again.") from None

    def save(self, path: Path) -> None:
        """Write the curve as JSON, a line for each step; the means are there for readers."""
        head = {
            "format": FORMAT, "version": VERSION, "name": self.name, "fingerprint": self.fingerprint,
            "seeds": self.seeds, "seconds": self.seconds, "tolerance": self.basis, "data": self.data,
            "hardware": self.hardware, "versions": self.versions, "config": self.config,
        }  # fmt: skip
        points = [
            json.dumps(
                {"step": at.step, "tokens": at.tokens, "mean": round(at.mean, 6),
                 "tolerance": round(at.tolerance, 6), "losses": losses}
            )
            for at, losses in zip(self.expected, self.losses, strict=True)
        ]  # fmt: skip
        text = json.dumps(head, indent=2).removesuffix("\n}")
        lines = ",\n    ".join(points)
        write_text_atomically(path, f'{text},\n  "points": [\n    {lines}\n  ]\n}}\n')

    def judge(
        self,
        rows: Iterable[Mapping[str, Any]],
        config: "Mapping[str, Any] | RunConfig | None" = None,
        data: Mapping[str, Any] | None = None,
    ) -> Verdict:
        """Say whether a run's losses are as they should be.

        Args:
            rows: Rows of metrics.jsonl, in order; those of other kinds than "valid" are left out.
            config: The run's settings, to see that they are the same; None takes them to be.
            data: compare.data_facts of the run, likewise.
        """
        strange = self._why_not_comparable(config, data)
        if strange:
            return Verdict("not comparable", f"not comparable: {strange}")
        valid = {row["step"]: number(row, "loss") for row in rows if row.get("kind") == "valid"}
        pairs = [(at, loss) for at in self.expected if (loss := valid.get(at.step)) is not None]
        if not pairs:
            sentence = f"no validation yet at a step of the reference ({_listed(self.steps)})"
            return Verdict("not comparable", f"not comparable: {sentence}")
        sides = [_side(loss, at) for at, loss in pairs]
        at, loss = pairs[-1]
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "the reference"
        figures = f"{loss:.3f} at step {at.step:,}, where {seeds} gave {at.mean:.3f} +- {at.tolerance:.3f}"
        if sides[-1] == "normal":
            return Verdict("normal", f"normal: {figures}")
        first = len(sides) - 1
        while first and sides[first - 1] == sides[-1]:
            first -= 1
        since = pairs[first][0].step
        words = "too high" if sides[-1] == "too high" else "better than expected"
        return Verdict(sides[-1], f"{words} from step {since:,} on: {figures}", since)

    def judge_run(self, record: RunRecord) -> Verdict:
        """Say whether the losses of the run in a folder are as they should be."""
        return self.judge(record.valid, record.config, data_facts(record.folder))

    def _tolerance(self, index: int, mean: float) -> float:
        count = len(self.seeds)
        if count == 1:
            return LONELY_SHARE * abs(mean)
        near = self.losses[max(0, index - 1) : index + 2]
        squares = [(loss - sum(row) / count) ** 2 for row in near for loss in row]
        spread = math.sqrt(sum(squares) / (len(near) * (count - 1)))
        student = STUDENT[min(count - 1, len(STUDENT)) - 1]
        return max(student * spread * math.sqrt(1 + 1 / count), LEAST_SHARE * abs(mean))

    def _why_not_comparable(
        self, config: "Mapping[str, Any] | RunConfig | None", data: Mapping[str, Any] | None
    ) -> str:
        if config is not None:
            own, ours = same_settings(config), same_settings(self.config)
            changes = [
                f"{key} {own.get(key, MISSING)} instead of {ours.get(key, MISSING)}"
                for key in unequal(ours, own)
            ]
            if changes:
                return f"settings differ: {_listed(changes)}"
        if data is not None:
            changes = [
                f"{key.replace('_', ' ')} {_amount(data[key])} instead of {_amount(self.data[key])}"
                for key in self.data
                if key in data and data[key] != self.data[key]
            ]
            if changes:
                return f"the data differ: {_listed(changes)}"
        return ""


def names() -> list[str]:
    """The recipes whose curves ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def open_reference(place: str) -> ReferenceCurve:
    """The curve that a user names: a recipe's name, a curve's file, or a run folder.

    Raises:
        ValueError: It is none of them.
    """
    shipped = ReferenceCurve.find(place)
    if shipped is not None:
        return shipped
    if is_run(Path(place)):
        return ReferenceCurve.from_runs([read_run(Path(place))])
    if Path(place).suffix == ".json":
        return ReferenceCurve.load(Path(place))
    raise ValueError(
        f"{place}: nothing to compare with; give a run folder, a curve's .json file, or a recipe with a "
        f"shipped curve ({_shipped()})."
    )


def _shipped() -> str:
    return ", ".join(names()) or "none"


def _refuse_unequal(records: Sequence[RunRecord]) -> None:
    if not records:
        raise ValueError("no run given; give finished runs of one recipe with different seeds.")
    for record in records:
        if facts(record).status != "finished":
            raise ValueError(f"{record.folder}: this run is not finished; a reference needs whole runs.")
    seeds = [_seed(record) for record in records]
    for seed, record in zip(seeds, records, strict=True):
        if seeds.count(seed) > 1:
            raise ValueError(
                f"{record.folder}: seed {seed} is there twice; train with another, seed={max(seeds) + 1}."
            )
    first = same_settings(records[0].config)
    for record in records[1:]:
        keys = unequal(first, same_settings(record.config))
        if keys:
            raise ValueError(
                f"{record.folder}: its settings differ from those of {records[0].folder}: {_listed(keys)}; "
                "a reference needs runs that differ by their seed alone."
            )


def _seed(record: RunRecord) -> int:
    return int(number(record.config, "seed") or 0)


def _side(loss: float, at: Expected) -> Literal["normal", "too high", "better"]:
    if not loss <= at.mean + at.tolerance:  # also what is not a number
        return "too high"
    return "better" if loss < at.mean - at.tolerance else "normal"


def _amount(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)[:12]


def _listed(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:MAX_NAMED]))
    return shown if len(items) <= MAX_NAMED else f"{shown} and {len(items) - MAX_NAMED} more"
