"""Assembly: settings come in, built parts go out. The only file that knows all families."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from scratchlm.data import CORPORA, LOADERS
from scratchlm.data.corpora import Corpus
from scratchlm.data.loader import Batches, Loader
from scratchlm.data.shards import TokenDataset
from scratchlm.distributed.engine import ENGINES, Engine, Work, engine_for
from scratchlm.distributed.process import Processes, check_rows
from scratchlm.model import MODELS
from scratchlm.optim import OPTIMIZERS, SCHEDULES
from scratchlm.optim.groups import parameter_groups
from scratchlm.optim.width import with_rates_of_width
from scratchlm.runtime import set_seed
from scratchlm.tokenizer import TOKENIZERS, Tokenizer
from scratchlm.train.config import RunConfig
from scratchlm.train.guard import Guard
from scratchlm.train.trainer import Execution, Trainer


def build_corpus(config: RunConfig) -> Corpus:
    """The corpus that the run reads."""
    return CORPORA.build(config.corpus.name, **config.corpus.settings)


def train_tokenizer(
    config: RunConfig, corpus: Corpus, progress: Callable[[str, int, int], None]
) -> Tokenizer:
    """Learn the run's tokenizer from the training split."""
    recipe = TOKENIZERS.build(config.tokenizer.name, **config.tokenizer.settings)
    return recipe.train((chunk.text for chunk in corpus.chunks("train")), progress=progress)


def check_sharing(config: RunConfig, world_size: int) -> None:
    """See that so many processes can share the run, before anything is prepared.

    Raises:
        ValueError: They cannot; the message has numbers that can.
    """
    check_rows(config.rows_per_step, world_size)
    if world_size > 1:
        ENGINES.build(config.distributed.name, **config.distributed.settings).check(world_size)


def build_model(config: RunConfig, tokenizer: Tokenizer) -> torch.nn.Module:
    """The model with its initial weights, which `config.seed` decides."""
    set_seed(config.seed)
    settings = config.model.with_vocabulary(tokenizer.vocab_size)
    return MODELS.get(settings.name)(settings)


def build_engine(config: RunConfig, processes: Processes) -> Engine:
    """How the processes share the work."""
    return engine_for(config.distributed.name, config.distributed.settings, processes)


def build_optimizer(config: RunConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters; only matrices decay."""
    groups = groups_of(config, model.named_parameters())
    return OPTIMIZERS.build(config.optimizer.name, groups, **config.optimizer.settings)


def build_sharded_optimizer(config: RunConfig, engine: Engine) -> torch.optim.Optimizer:
    """The optimizer over what this process moves."""

    def build(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return OPTIMIZERS.build(config.optimizer.name, groups, **config.optimizer.settings)

    return engine.make_optimizer(build, groups_of(config, engine.named_parameters().items()))


def groups_of(config: RunConfig, named_parameters: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The parameters by kind; with model.mup_width, the blocks' matrices at rates of their own."""
    groups, optimizer = parameter_groups(named_parameters), config.optimizer
    if config.model.mup_width is None:
        return groups
    return with_rates_of_width(groups, config.model.width_ratio, optimizer.name, optimizer.settings)


def check_parts(config: RunConfig) -> None:
    """Build what needs no data, so that a value out of its range is told before hours of preparation.

    Raises:
        ValueError: Optimizer or schedule does not take a value.
    """
    groups = groups_of(config, [("matrix", torch.nn.Parameter(torch.zeros(2, 2)))])
    OPTIMIZERS.build(config.optimizer.name, groups, **config.optimizer.settings)
    build_schedule(config)


def build_schedule(config: RunConfig) -> Callable[[int], float]:
    """The schedule: step -> multiplier of the learning rate."""
    return SCHEDULES.build(config.schedule.name, config.train.steps, **config.schedule.settings)


def build_loader(config: RunConfig, dataset: TokenDataset) -> Loader:
    """The loader over the training shards."""
    supplied: tuple[Any, ...] = (dataset, config.rows_per_step, config.model.context_length, config.seed)
    return LOADERS.build(config.batches.name, *supplied, **config.batches.settings)


def build_trainer(
    config: RunConfig,
    objective: torch.nn.Module,
    loader: Batches,
    execution: Execution,
    engine: Engine,
    *,
    processes: Processes,
    abandon: Callable[[], bool],
) -> Trainer:
    """The trainer with everything that a step needs; `engine` was asked when the model was built."""
    engine.wrap(Work(objective.model, objective, execution.precision, execution.compile), processes)
    return Trainer(
        engine,
        build_sharded_optimizer(config, engine),
        build_schedule(config),
        loader,
        rows_per_step=config.rows_per_step,
        grad_clip=config.train.grad_clip,
        execution=execution,
        guard=Guard(config.train.guard),
        seed=config.seed,
        processes=processes,
        abandon=abandon,
    )
