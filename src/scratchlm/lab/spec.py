"""A study file comes in, a frozen and checked `Study` goes out: a question, and the runs that answer it.

    name = "lr-sweep"                                        recipes/studies/lr-sweep.toml
    question = "Which learning rate is best?"
    recipe = "demo"
    settings = ["optimizer.name=adamw"]                      over the recipe's, in every cell
    seeds = [1, 2, 3]
    base = "0.003"                                           the cell that others are compared to
    budget = { tokens = 2_000_000 }
    [grid]
    "optimizer.lr" = [1e-2, 3e-3, 1e-3]
    [scales.cpu]
    settings = ["model.d_model=128"]                         over those above, on this kind of machine

Exactly one of `grid`, `cells`, `changes`, `random` and `optuna` says what the cells are. Keys are strict.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from scratchlm.config import Config, load, parse_override
from scratchlm.registry import UnknownNameError, unknown

FOLDER = Path(__file__).parents[1] / "recipes" / "studies"
RESULTS = FOLDER / "results"
"""rows.csv of the shipped studies as they were measured, NAME-SCALE.csv."""

ScaleName = Literal["cpu", "gpu"]
MAX_CELLS = 10_000
"""More are a mistake in the grid: at ten seconds each they take more than a day."""


class Budget(Config):
    """How long each cell trains, whatever its shape; the number of steps follows."""

    tokens: int | None = Field(default=None, gt=0)
    """Tokens seen."""
    flops: float | None = Field(default=None, gt=0)
    """Floating-point operations, by model/accounting.py: equal compute for cells of different shape."""
    minutes: float | None = Field(default=None, gt=0)
    """Training time, by an estimate on this machine, which is kept in the study's folder."""

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} contradict each other" if given else "is empty"
            raise ValueError(f"budget: {what}; give one of tokens, flops or minutes.")
        return self


class Case(Config):
    """One cell of a list."""

    label: str = Field(min_length=1)
    """Its name in tables and figures."""
    settings: tuple[str, ...] = ()
    """key=value words over the study's."""
    budget: Budget | None = None
    """Instead of the study's, in tokens or flops: cells of several budgets make a scaling law."""
    against: str | None = None
    """Label of the cell that this one is compared to, instead of the study's base: a ladder's rung below."""

    @model_validator(mode="after")
    def _no_time(self) -> "Case":
        if self.budget is not None and self.budget.minutes is not None:
            raise ValueError(f"{self.label}: minutes are a budget of the whole study; give tokens or flops.")
        return self


class Change(Config):
    """Something that is put in alone, and taken out of all."""

    label: str = Field(min_length=1)
    """Its name in tables and figures."""
    settings: tuple[str, ...] = Field(min_length=1)
    """key=value words over the study's: what it changes; no two changes set the same key."""


class Range(Config):
    """Where a setting is drawn from: choices, or numbers from low to high."""

    choices: tuple[Any, ...] = ()
    """Values to choose among."""
    low: float | None = None
    """Least value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Whether its logarithm is drawn evenly: for rates and sizes."""
    whole: bool = False
    """Whether only whole numbers are drawn."""

    @model_validator(mode="after")
    def _complete(self) -> "Range":
        if bool(self.choices) == (self.low is not None and self.high is not None):
            raise ValueError("give choices, or low and high.")
        if not self.choices and not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}.")
        if self.log and (self.choices or self.low <= 0):
            raise ValueError("log=true needs low and high above 0.")
        return self


class RandomSearch(Config):
    """Cells drawn at random."""

    trials: int = Field(ge=1)
    """How many."""
    seed: int = 0
    """The same seed, the same cells."""
    space: dict[str, Range] = Field(min_length=1)
    """Setting -> where it is drawn from."""


class OptunaSearch(RandomSearch):
    """Cells that Optuna proposes from the results so far (tree-structured Parzen estimators)."""

    at_once: int = Field(default=4, ge=1)
    """Cells proposed from the same results; they can run side by side."""


class Rows(Config):
    """Batch sizes, each twice the one before: up to the machine's memory (batch_sizes.py)."""

    first: int = Field(default=8, ge=1)
    """Rows of the smallest."""
    least_steps: int = Field(default=30, ge=1)
    """Sizes for which the budget pays fewer steps are left out."""


class Link(Config):
    """A run that is made once, before the cells, which go on from it (start.py)."""

    do: str
    """What it does: train, or a way of post-training that goes on from the link before it."""
    recipe: str
    """What it starts from: a shipped recipe, or a file beside the study's."""
    settings: tuple[str, ...] = ()
    """key=value words over the recipe's."""


class Scale(Config):
    """What the study is on one kind of machine."""

    settings: tuple[str, ...] = ()
    """key=value words over the study's settings."""
    recipe: str | None = None
    """Instead of the study's."""
    start: tuple[Link, ...] | None = None
    """Instead of the study's."""
    cells: tuple[Case, ...] | None = Field(default=None, min_length=1)
    """Instead of the study's, where a cell's settings depend on the size."""
    changes: tuple[Change, ...] | None = Field(default=None, min_length=3)
    """Instead of the study's, likewise."""
    grid: dict[str, Any] | None = None
    """Instead of the study's: other rates are best for other sizes."""
    budget: Budget | None = None
    """Instead of the study's."""
    seeds: tuple[int, ...] | None = None
    """Instead of the study's."""


class Scales(Config):
    """The sizes in which a study can be run."""

    cpu: Scale | None = None
    """Minutes on two cores."""
    gpu: Scale | None = None
    """Full size on one GPU."""


class Study(Config):
    """A question and the runs that answer it."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    """One word; the folder's name."""
    question: str = Field(min_length=1)
    """One sentence."""
    about: str = ""
    """What a reader should know: where the question comes from, what the cells are."""
    experiment: str = "train"
    """What a cell does: train a recipe, or another experiment (lab/experiments.py)."""
    recipe: str = ""
    """The recipe that every cell starts from: a shipped one, or a file beside the study's."""
    start: tuple[Link, ...] = ()
    """Runs that all cells go on from, where cells are of post-training: made once, one after the other."""
    settings: tuple[str, ...] = ()
    """key=value words over the recipe's, in every cell."""
    seeds: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Each cell is run once with each; their spread is the noise."""
    grid: dict[str, Any] | None = None
    """Setting -> values; the cells are all combinations."""
    rows: Rows | None = None
    """An axis of the grid: numbers of rows in a step, as many as the machine can take."""
    cells: tuple[Case, ...] | None = None
    """The cells one by one, with labels."""
    changes: tuple[Change, ...] | None = Field(default=None, min_length=3)
    """At least three; cells without any, with each alone, with all, with all but each."""
    random: RandomSearch | None = None
    """Cells at random."""
    optuna: OptunaSearch | None = None
    """Cells by results."""
    scales: Scales = Scales()
    """The sizes: settings over those of the study."""
    budget: Budget | None = None
    """How long each cell trains; without it, as many steps as the recipe says."""
    metric: Literal["loss", "bits_per_byte"] = "loss"
    """What is compared: validation loss in nats per token, or bits per byte where tokenizers differ."""
    base: str | None = None
    """Label of the cell that the others are compared to; the first by default."""
    tuned: str | None = None
    """A setting that is tuned anew for every value of the others, which are compared each at its best."""
    target: float | None = None
    """A number of the metric: the report says how soon each cell reaches it; by default the base's last."""
    beyond_context: bool = False
    """Whether each trained model is also measured at two and four times its context (beyond.py)."""
    coordinates: bool = False
    """Whether it is measured how far each run moves its model's activations (coordinates.py)."""
    validations: int = Field(default=10, ge=1)
    """Points of each learning curve, unless train.eval_every says otherwise."""

    @model_validator(mode="after")
    def _one_search(self) -> "Study":
        kinds = ("grid", "cells", "changes", "random", "optuna")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} contradict each other" if given else "no cells"
            raise ValueError(f"{self.name}: {what}; give exactly one of {', '.join(kinds)}.")
        if self.cells == () or self.grid == {}:
            raise ValueError(f"{self.name}: {given[0]} is empty; name at least one cell.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"{self.name}: seeds={list(self.seeds)} holds one twice; each counts once.")
        if self.rows is not None and self.grid is None:
            raise ValueError(f"{self.name}: rows goes with a grid; give grid = {{ 'optimizer.lr' = [...] }}.")
        if self.tuned is not None and self.tuned not in self.varied():
            known = ", ".join(sorted(self.varied())) or "none"
            raise ValueError(f"{self.name}: tuned={self.tuned!r} is set by no cell; they set: {known}.")
        for name in ("beyond_context", "coordinates"):
            if getattr(self, name) and self.experiment != "train":
                raise ValueError(f"{self.name}: {name}=true is for models; {self.experiment} trains none.")
        if self.start and (self.experiment in ("train", "quadratic") or "base" in self.varied()):
            raise ValueError(f"{self.name}: start is what cells of post-training go on from, and their base.")
        return self

    @property
    def numbers(self) -> str:
        """The metric with its unit."""
        return "nats per token" if self.metric == "loss" else "bits per byte"

    def varied(self) -> set[str]:
        """The settings that cells set."""
        search = self.random or self.optuna
        found = set(search.space) if search is not None else set(flat_grid(self.grid or {}))
        found |= {"train.batch_tokens"} if self.rows is not None else set()
        for case in (*(self.cells or ()), *(self.changes or ())):
            found |= {word.partition("=")[0].strip() for word in case.settings}
        return found

    def scaled(self, scale: ScaleName) -> "Study":
        """The study in one size: settings, budget and seeds of `scale` laid over its own.

        Raises:
            ValueError: It has sizes, and not this one.
        """
        chosen: Scale | None = getattr(self.scales, scale)
        if chosen is None:
            known = [name for name, one in self.scales if one is not None]
            if not known:
                return self
            raise ValueError(f"{self.name}: has no scale {scale!r}; known: {', '.join(known)}.")
        changes: dict[str, Any] = {"settings": (*self.settings, *chosen.settings), "scales": Scales()}
        for name in ("budget", "seeds", "recipe", "start", "cells", "changes", "grid"):
            changes |= {name: getattr(chosen, name)} if getattr(chosen, name) else {}
        return self.model_copy(update=changes)


class Words(NamedTuple):
    """key=value words, sorted by whom they speak to."""

    study: list[str]
    run: list[str]


def names() -> list[str]:
    """The studies that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name_or_path: str) -> Path:
    """The file of a shipped study, or of somebody's own.

    Raises:
        UnknownNameError: Neither a shipped study nor a file.
    """
    path = Path(name_or_path)
    if path.suffix in (".toml", ".json"):
        if path.is_file():
            return path
        raise UnknownNameError(f"{path}: no such file. Shipped studies: {', '.join(names())}.")
    if name_or_path not in names():
        raise UnknownNameError(unknown("study", name_or_path, names()))
    return FOLDER / f"{name_or_path}.toml"


def read_study(name_or_path: str, scale: ScaleName = "cpu", overrides: Iterable[str] = ()) -> Study:
    """Read a study in one size.

    Args:
        name_or_path: A shipped study, or a .toml or .json file.
        scale: Which of its sizes.
        overrides: key=value words; those with a key of the study (seeds, budget.tokens) change it, all
            others are settings of every run.

    Raises:
        ValueError: The file, or a word, is wrong; the message says how.
    """
    path, words = find(name_or_path), split(overrides)
    study = load(Study, path).scaled(scale)
    tree = study.model_dump(mode="json")
    for word in words.study:
        keys, value = parse_override(word)
        if keys[0] == "budget" and len(keys) == 2:
            tree["budget"] = {keys[1]: value}
        elif len(keys) == 1:
            tree[keys[0]] = value
        else:
            raise ValueError(f"{word}: set {keys[0]} as a whole, or change the study's file.")
    tree["settings"] = laid_over(tree["settings"], words.run)
    study = load(Study, base=tree)
    varied = study.varied()
    for word in words.run:
        key = word.partition("=")[0].strip()
        if key in varied:
            raise ValueError(
                f"{study.name}: {word} and the cells both set {key}; change the study's cells instead."
            )
    links = [link.model_copy(update={"recipe": _beside(path, link.recipe)}) for link in study.start]
    return study.model_copy(update={"recipe": _beside(path, study.recipe), "start": tuple(links)})


def _beside(study: Path, recipe: str) -> str:
    """A recipe's file next to the study's, where there is one."""
    found = study.parent / recipe
    return str(found) if recipe and Path(recipe).suffix and found.is_file() else recipe


def split(words: Iterable[str]) -> Words:
    """Sort words into those for the study and those for its runs."""
    sorted_words = Words([], [])
    for word in words:
        keys, _ = parse_override(word)
        (sorted_words.study if keys[0] in Study.model_fields else sorted_words.run).append(word)
    return sorted_words


def laid_over(settings: Iterable[str], words: Iterable[str]) -> list[str]:
    """Settings without those that `words` set anew, then the words."""
    words = list(words)
    replaced = {word.partition("=")[0].strip() for word in words}
    return [word for word in settings if word.partition("=")[0].strip() not in replaced] + words


def flat_grid(grid: Mapping[str, Any], before: str = "") -> dict[str, list[Any]]:
    """A grid as {dotted key: values}, whether its keys were quoted or written as tables."""
    found: dict[str, list[Any]] = {}
    for key, values in grid.items():
        if isinstance(values, Mapping):
            found |= flat_grid(values, f"{before}{key}.")
        elif isinstance(values, list | tuple) and values:
            found[f"{before}{key}"] = list(values)
        else:
            raise ValueError(
                f"grid: {before}{key}={values!r} is no list of values; give at least one: [...]."
            )
    return found
