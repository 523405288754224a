"""Training inside a run folder: what happens between the steps.

    step -> guard -> row of metrics -> statistics? validation? sample? checkpoint? -> stop? -> next step

The trainer computes; this file does the rest at its intervals: it goes back after a spike if the run shall,
stops cleanly on Ctrl-C or SIGTERM with a checkpoint, and continues a stopped run. What decides the numbers is
in the checkpoint (snapshot.py). Several processes compute, validate and save together; the first one writes
the records and tells.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from scratchlm import runtime
from scratchlm.checkpoint import Coordinator, Saver
from scratchlm.data.corpora import Corpus
from scratchlm.data.shards import TokenDataset
from scratchlm.distributed.process import Processes
from scratchlm.optim.ema import EMA
from scratchlm.tokenizer import Tokenizer
from scratchlm.train import build, snapshot
from scratchlm.train.aim import Aim, Pretraining
from scratchlm.train.config import RunConfig
from scratchlm.train.events import OnEvent, Saved
from scratchlm.train.examine import Examiner, Floor, Validation
from scratchlm.train.folder import RunFolder
from scratchlm.train.pace import warn_if_crowded
from scratchlm.train.plan import Plan, execution
from scratchlm.train.record import Record, write_batches
from scratchlm.train.restore import restore, take_back
from scratchlm.train.settled import choose_plan, remember
from scratchlm.train.signals import StopSignals
from scratchlm.train.snapshot import Progress
from scratchlm.train.summary import summarise
from scratchlm.train.trainer import StepAbandonedError, StepImpossibleError, StepResult, never


class NonFiniteLossError(ValueError):
    """Too many steps in a row were not usable; the parameters are those of the last good step."""


class Session:
    """One training run in one folder."""

    validated: tuple[int, Validation] | None = None
    """The last validation and the step behind which it was."""

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        corpus: Corpus | None,
        tokenizer: Tokenizer,
        train_set: TokenDataset,
        valid_set: TokenDataset,
        floor: Floor | None,
        on_event: OnEvent,
        processes: Processes,
        aim: Aim | None = None,
    ) -> None:
        """Build model, optimizer, schedule, batches and trainer for `config` on this machine.

        `aim` is pretraining by default; another one may give sets that only know their sizes, and no corpus.
        """
        self.aim = aim or Pretraining()
        self.folder, self.config, self.tokenizer, self.processes = folder, config, tokenizer, processes
        self.train_set, self.valid_set, self.floor = train_set, valid_set, floor
        use_cores(processes)
        self.plan = choose_plan(
            config,
            folder,
            processes,
            vocab_size=tokenizer.vocab_size,
            train_tokens=train_set.num_tokens,
            valid_tokens=valid_set.num_tokens,
        )
        how = self.aim.execution(execution(self.plan, config.model.context_length))
        self.device, self.signals = how.device, StopSignals()
        engine = build.build_engine(config, processes)
        with engine.building(self.device, how.precision, processes):
            self.model = self.aim.build_model(config, tokenizer)
        self.model.to(self.device)
        # several processes must stop at the same place, which is after a step
        abandon = self.signals.requested if processes.world_size == 1 else never
        loss_how = replace(how, compile=how.compile and engine.compiles_loss)
        objective = self.aim.build_objective(config, self.model, tokenizer, loss_how)
        loader = self.aim.build_loader(config, train_set)
        self.trainer = build.build_trainer(
            config, objective, loader, how, engine, processes=processes, abandon=abandon
        )
        decay = config.train.ema_decay
        self.average = EMA(self.trainer.engine.named_parameters().items(), decay) if decay else None
        self.record = Record(
            folder,
            config,
            self.plan,
            on_event,
            train_tokens=train_set.num_tokens,
            writes=processes.first,
        )
        self.examiner = Examiner(
            config,
            self.trainer.engine,
            self.average,
            self.record,
            corpus=corpus,
            tokenizer=tokenizer,
            valid_set=valid_set,
            floor=floor,
            precision=self.plan.precision,
            aim=self.aim,
        )
        self.progress, self.last_saved = Progress(), -1
        self.saver: Saver | None = None

    def run(
        self,
        *,
        resume: bool,
        changes: dict[str, Any] | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Train to the end or to a signal; return the summary.

        Args:
            resume: Go on from the newest valid checkpoint.
            changes: Settings that differ from those the run had, for the record.
            settle: Called in the first process once the run goes on: its new settings are good.

        Raises:
            CheckpointError, ValueError: It cannot go on; nothing was changed.
            NonFiniteLossError: Too many steps in a row were not usable.
            StepImpossibleError: A step has no batch; those before it are saved.
            OSError: A checkpoint could not be written.
        """
        steps = self.config.train.steps
        if self.device.type == "cpu" and self.processes.world_size == 1:
            warn_if_crowded()
        with self._writing(), self.signals:
            self.aim.attach(self)
            if resume:
                restore(self, changes or {})
                if self.processes.first:
                    settle()
            if self.processes.first:
                remember(self.folder, self.plan, self.processes.world_size)
            if self.progress.done_steps == 0 and self.last_saved < 0:
                self.aim.begin(self)
            self.record.say(self.aim.describe(describe(self.plan, self.config, self.processes)))
            while self.progress.done_steps < steps and self._one_step():
                pass
            finished = self.progress.done_steps >= steps
            lengths = self.record.lengths()
            self._save(wait=not finished)  # first of all: whoever sent SIGTERM may not wait for more
            final = self._validate(everything=finished)
            if finished:
                best = self._is_best(final.comparable)
                self._sample()
                # a run that ends before its summary is written looks again: no row shall stand twice
                self._save(wait=True, again=lengths if best else None)
            return summarise(self, final.measured, stopped_early=not finished)

    @property
    def part(self) -> int | None:
        """How much of the held-out data validations on the way take; None: all of it."""
        return self.aim.part_measured(self.config)

    def _one_step(self) -> bool:
        """One step and what follows it; False ends the loop."""
        step = self.progress.done_steps
        if self._measures_layers(step + 1):
            self.examiner.statistics.before_step()
        try:
            self.aim.before_step(step)
            result = self.trainer.step(step)
        except StepAbandonedError:
            self.record.say(f"{self.signals.name}: step {step + 1} was given up; continue with --resume.")
            return False
        except StepImpossibleError:
            if step and self.processes.world_size == 1:  # of several, the others wait in the step
                self._save(wait=True)
            raise
        self.aim.after_step(result)
        self.progress.training_seconds += result.seconds
        if result.judgement.action == "rollback":
            if self._roll_back(result):
                return True
            left = self.trainer.guard.leave_out(
                result.judgement, step=result.step, data_step=result.data_step
            )
            result = result._replace(judgement=left)
        self.progress.done_steps = result.step
        if result.judgement.action == "apply" and self.average is not None:
            self.average.update_()
        self.record.step(
            result,
            self.progress,
            tokens=self.aim.tokens(self.config, result.step),
            figures=self.aim.figures(),
        )
        if self._measures_layers(result.step):
            self._measure_layers(result)
        if result.judgement.action == "stop":
            self._give_up(result)
        if result.step < self.config.train.steps:
            self._at_intervals(result.step)
            if self.processes.any(self.signals.requested()):
                name = self.signals.name or "SIGTERM"
                self.record.say(f"{name}: stopping after step {result.step}; continue with --resume.")
                return False
        return True

    def _at_intervals(self, step: int) -> None:
        train = self.config.train
        best = step % train.eval_every == 0 and self._is_best(self._validate(everything=False).comparable)
        if step % train.sample_every == 0 or step == train.first_sample:
            self._sample()
        if step % train.save_every == 0 or best:
            self._save()

    def _measures_layers(self, step: int) -> bool:
        every = self.config.train.statistics_every
        if not every or step % every:
            return False
        return self.processes.first or not self.trainer.engine.whole

    def _measure_layers(self, result: StepResult) -> None:
        if result.judgement.action != "apply":
            self.examiner.statistics.forget()
            return
        ids = self.trainer.batches.loader.rows(result.data_step, 0, 1).inputs
        self.examiner.measure_layers(result.step, ids)

    def _roll_back(self, result: StepResult) -> bool:
        """Go back to the newest checkpoint and skip the data since then; False when there is none."""
        if self.saver is not None:
            self.saver.wait()
        self.processes.barrier()
        trainer, before = self.trainer, self.progress
        next_batch, guard = result.step + trainer.data_offset, trainer.guard.state()
        saved = take_back(self, rolling_back=True)
        if saved is None:
            self.record.say(
                f"Step {result.step}: {result.judgement.reason}; there is no checkpoint to go back to."
            )
            return False
        trainer.data_offset = next_batch - saved.step  # the next step reads what follows the spike's batch
        trainer.guard.num_rollbacks = guard["num_rollbacks"] + 1
        trainer.guard.num_spikes = guard["num_spikes"]
        self.progress.training_seconds = before.training_seconds
        row = {"kind": "rollback", "step": saved.step, "from_step": result.step}
        row |= {"data_offset": trainer.data_offset, "reason": result.judgement.reason}
        self.record.add(row)
        self.record.say(
            f"Step {result.step}: {result.judgement.reason}; back to step {saved.step}, the data since then "
            "is skipped."
        )
        return True

    def _give_up(self, result: StepResult) -> None:
        """Leave the batches for inspection and a checkpoint of the last good parameters, and stop."""
        path = self.folder.path / f"unusable-batches-{result.step:07d}.jsonl"
        self._save(wait=True)
        if self.processes.first:
            try:
                write_batches(path, self.trainer.guard.left_out, self.trainer.batches.loader)
            except OSError as error:  # of two errors the loss is the one to be told
                runtime.log.warning("%s could not be written (%s).", path, error.strerror)
        self.processes.barrier()  # a launcher ends all when one has left: not before the checkpoint is whole
        raise NonFiniteLossError(
            f"step {result.step}: {result.judgement.reason}. The parameters are those of the last good step, "
            f"and saved; what the steps read is in {path}. Lower optimizer.lr, lengthen the schedule's "
            "warmup or lower train.grad_clip."
        )

    def examine(self) -> None:
        """Validate on everything and sample, as after the last step."""
        self._validate(everything=True)
        self._sample()

    def _validate(self, *, everything: bool) -> Validation:
        step = self.progress.done_steps
        if self.validated and self.validated[0] == step and not everything:
            return self.validated[1]  # stopped right behind a validation
        runtime.release_freed_memory()
        found = self.examiner.validate(self.progress, everything=everything)
        runtime.release_freed_memory()
        self.validated = (step, found)
        return found

    def _is_best(self, loss: float) -> bool:
        """Whether this step's checkpoint shall be the best validated one; if so, it has to be saved."""
        train, step = self.config.train, self.progress.done_steps
        # early on nearly every validation is the best so far: such a run need not save at each
        saved = step % train.save_every == 0 or step == train.steps
        best = loss < self.progress.best_saved_loss
        best = best and (saved or (train.save_best and step > train.save_every))
        best = self.processes.any(best)  # all save, or none
        if best:
            self.progress.best_saved_loss, self.progress.best_step = loss, step
        return best

    def _sample(self) -> None:
        if not self.trainer.engine.whole:  # nobody can alone
            self.examiner.sample(self.progress.done_steps)
            return
        with self.processes.first_alone():
            if self.processes.first:
                self.examiner.sample(self.progress.done_steps)

    def _save(self, *, wait: bool = False, again: dict[str, int] | None = None) -> None:
        """Save a step once; or `again`, when it became the best one, as if its records had those lengths."""
        step = self.progress.done_steps
        if self.saver is None:
            return
        if self.last_saved != step or again:
            lengths = again or self.record.lengths()
            tensors, state = snapshot.take(self.trainer, self.progress, self.average, lengths)
            tensors |= self.aim.tensors(self.trainer.engine)
            state |= {"aim": self.aim.state(), "steps": self.config.train.steps, "part": self.part}
            identity = snapshot.identity(self.trainer, self.tokenizer.fingerprint)
            self.saver.save(step, tensors, state, identity, protect=(self.progress.best_step,))
            self.last_saved = step
        if wait:
            self.saver.wait()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Have a saver while training, and let everything that runs beside it end."""
        train = self.config.train
        with contextlib.ExitStack() as stack:
            stack.enter_context(runtime.keeping_freed_memory())
            stack.callback(self.trainer.batches.close)
            stack.callback(self.record.close)
            stack.callback(self.aim.close)
            if self.processes.first:
                text = json.dumps(runtime.environment(), indent=2) + "\n"
                runtime.write_text_atomically(self.folder.environment, text)
            saver = Saver(
                self.folder.checkpoints,
                newest=train.keep_checkpoints,
                every=train.keep_every,
                background=train.save_in_background,
                on_saved=lambda step, path: self.record.tell(Saved(step, path)),
                coordinator=self._coordinator(),
            )
            self.saver = stack.enter_context(saver)
            yield

    def _coordinator(self) -> Coordinator | None:
        """What lets several processes save together."""
        together = self.processes
        if together.store is None:
            return None
        return Coordinator(together.store, together.rank, together.world_size)


def use_cores(processes: Processes) -> None:
    """Compute with all cores, or with this process's share of them."""
    here = processes.local_world_size
    runtime.set_threads(max(1, runtime.num_cores() // here) if here > 1 else None)


def describe(plan: Plan, config: RunConfig, processes: Processes) -> str:
    """One paragraph: how large, how long, how."""
    compiled = "compiled" if plan.compile else "not compiled"
    shared = ""
    if processes.world_size > 1:
        shared = f" on each of {processes.world_size} processes (distributed={config.distributed.name})"
    return (
        f"{plan.parameters:,} parameters, {plan.tokens:,} tokens ({plan.tokens_per_parameter:.1f} per "
        f"parameter, {plan.epochs or 0:.2f} epochs), "
        f"{config.train.batch_tokens:,} a step, {plan.micro_batch_tokens:,} at once{shared}, "
        f"{plan.precision} on {plan.device} ({plan.precision_reason}), {compiled} ({plan.compile_reason})."
    )
