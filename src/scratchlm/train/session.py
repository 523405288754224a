"""Training inside a run folder: what happens between the steps.

The trainer computes; this file validates, samples, saves and records at their intervals, stops cleanly on
Ctrl-C or SIGTERM with a checkpoint at the current step, and continues a stopped run. What decides the numbers
(parameters, optimizer, random state, step) is in the checkpoint; the loader needs nothing, a row is a
function of its number.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import torch

from scratchlm import runtime
from scratchlm.checkpoint import (
    keep_only,
    latest,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from scratchlm.data.corpora import Corpus
from scratchlm.data.shards import TokenDataset
from scratchlm.evaluate.likelihood import Likelihood, evaluate_split
from scratchlm.generate.engine import stream
from scratchlm.model import accounting
from scratchlm.tokenizer import Tokenizer
from scratchlm.train import build
from scratchlm.train.config import RunConfig
from scratchlm.train.events import Message, OnEvent, Sampled, Saved, StepEnded, Validated
from scratchlm.train.folder import RunFolder
from scratchlm.train.metrics import JsonLines
from scratchlm.train.plan import execution, make_plan
from scratchlm.train.trainer import StepResult, Trainer


class Floor(NamedTuple):
    """The loss that no model can beat, on the validation split."""

    loss: float
    bits_per_byte: float


class Session:
    """One training run in one folder."""

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        corpus: Corpus,
        tokenizer: Tokenizer,
        train_set: TokenDataset,
        valid_set: TokenDataset,
        floor: Floor | None,
        on_event: OnEvent,
    ) -> None:
        """Build model, optimizer, schedule, batches and trainer for `config` on this machine."""
        self.folder, self.config, self.corpus, self.tokenizer = folder, config, corpus, tokenizer
        self.valid_set, self.floor, self.on_event = valid_set, floor, on_event
        runtime.set_threads()
        self.plan = make_plan(config, vocab_size=tokenizer.vocab_size)
        how = execution(self.plan, config.model.context_length)
        self.device = how.device
        self.model = build.build_model(config, tokenizer).to(self.device)
        self.optimizer = build.build_optimizer(config, self.model)
        self.trainer = Trainer(
            self.model,
            self.optimizer,
            build.build_schedule(config),
            build.build_loader(config, train_set),
            rows_per_step=config.rows_per_step,
            grad_clip=config.train.grad_clip,
            execution=how,
        )
        self.metrics, self.samples = JsonLines(folder.metrics), JsonLines(folder.samples)
        self.best_loss, self.best_step, self.done_steps = math.inf, 0, 0
        self.training_seconds, self.last_saved = 0.0, -1
        self.stopping: str | None = None

    def run(self, *, resume: bool) -> dict[str, Any]:
        """Train to the end or to a signal; return the summary."""
        if resume:
            self._restore()
        environment = json.dumps(runtime.environment(), indent=2) + "\n"
        runtime.write_text_atomically(self.folder.environment, environment)
        self.on_event(Message(self._describe_plan()))
        with self._signals():
            self.trainer.train(self.done_steps, self.config.train.steps, self._after_step)
        if self.stopping:
            self._save()  # first of all: whoever sent SIGTERM may not wait for more
            return self._summary(self._validate(everything=False))
        final = self._validate(everything=True)
        self._sample()
        self._save()
        return self._summary(final)

    def _after_step(self, result: StepResult) -> bool:
        train, step = self.config.train, result.step
        self.done_steps = step
        self.training_seconds += result.seconds
        self._report_step(result)
        last = step == train.steps
        if step % train.eval_every == 0 and not last:
            self._validate(everything=False)
        if (step % train.sample_every == 0 or step == train.first_sample) and not last:
            self._sample()
        if step % train.save_every == 0 and not last:
            self._save()
        if self.stopping and not last:
            self.on_event(Message(f"{self.stopping}: stopping after step {step}; continue with --resume."))
            return False
        return True

    def _report_step(self, result: StepResult) -> None:
        train = self.config.train
        tokens = result.step * train.batch_tokens
        speed = train.batch_tokens / result.seconds
        average = self.training_seconds / max(1, self.done_steps)
        left = (train.steps - result.step) * min(average, result.seconds * 4)
        self.on_event(
            StepEnded(result.step, train.steps, result.loss, result.lr, result.grad_norm, tokens, speed, left)
        )
        if result.step % train.log_every == 0 or result.step in (1, train.steps):
            self.metrics.append(
                {
                    "kind": "train",
                    "step": result.step,
                    "tokens": tokens,
                    "loss": result.loss,
                    "lr": result.lr,
                    "grad_norm": result.grad_norm,
                    "tokens_per_second": speed,
                    "seconds": self.training_seconds,
                }
            )

    def _validate(self, *, everything: bool) -> Likelihood:
        train = self.config.train
        found = evaluate_split(
            self.model,
            self.valid_set,
            context_length=self.config.model.context_length,
            device=self.device,
            autocast=partial(runtime.autocast, self.device, self.plan.precision),
            max_tokens=None if everything else train.eval_tokens,
        )
        best = found.loss < self.best_loss
        if best:
            self.best_loss, self.best_step = found.loss, self.done_steps
        tokens = self.done_steps * train.batch_tokens
        row = {"kind": "valid", "step": self.done_steps, "tokens": tokens, "loss": found.loss}
        self.metrics.append({**row, "bits_per_byte": found.bits_per_byte, "seconds": self.training_seconds})
        floor = self.floor.loss if self.floor else None
        self.on_event(Validated(self.done_steps, found.loss, found.bits_per_byte, floor, best))
        return found

    def _sample(self) -> None:
        pieces = list(stream(self.model, self.tokenizer, self.config.prompt, self.config.sampling))
        text = self.config.prompt + "".join(piece.text for piece in pieces)
        score = self.corpus.consistency(text)
        consistency = score and {"num_facts": score[0], "num_consistent": score[1]}
        tokens = [{"text": piece.text, "probability": piece.probability} for piece in pieces]
        row = {"step": self.done_steps, "prompt": self.config.prompt, "text": text, "tokens": tokens}
        self.samples.append({**row, "consistency": consistency})
        shown = tuple((piece.text, piece.probability) for piece in pieces)
        self.on_event(Sampled(self.done_steps, self.config.prompt, text, shown))

    def _save(self) -> None:
        if self.last_saved == self.done_steps:
            return
        moments, plain = optimizer_tensors(self.optimizer)
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": moments,
            "random": {"torch": torch.get_rng_state()},
        }
        state = {
            "optimizer": plain,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_step": self.best_step,
            "training_seconds": self.training_seconds,
            "tokenizer": self.tokenizer.fingerprint,
        }
        path = save_checkpoint(self.folder.checkpoints, self.done_steps, tensors, state)
        keep_only(self.folder.checkpoints, self.config.train.keep_checkpoints, also=[self.best_step])
        self.last_saved = self.done_steps
        self.on_event(Saved(self.done_steps, path))

    def _restore(self) -> None:
        path = latest(self.folder.checkpoints)
        if path is None:
            self.on_event(Message("No checkpoint yet: training starts at the first step."))
            for lines in (self.metrics, self.samples):
                lines.truncate_after(-1)
            return
        saved = load_checkpoint(path)
        self.model.load_state_dict(saved.tensors["model"])
        restore_optimizer(self.optimizer, saved.tensors.get("optimizer", {}), saved.state["optimizer"])
        torch.set_rng_state(saved.tensors["random"]["torch"])
        self.done_steps = self.last_saved = saved.step
        self.best_loss = math.inf if saved.state["best_loss"] is None else saved.state["best_loss"]
        self.best_step, self.training_seconds = saved.state["best_step"], saved.state["training_seconds"]
        for lines in (self.metrics, self.samples):
            lines.truncate_after(saved.step)
        self.on_event(Message(f"Continuing at step {saved.step} of {self.config.train.steps}."))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM stops after the current step; the second Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopping = signal.Signals(number).name

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _describe_plan(self) -> str:
        plan = self.plan
        compiled = "compiled" if plan.compile else "not compiled"
        return (
            f"{plan.parameters:,} parameters, {plan.tokens:,} tokens ({plan.tokens_per_parameter:.1f} per "
            "parameter), "
            f"{plan.accumulation} x {plan.micro_batch_tokens:,} tokens a step, {plan.precision} on "
            f"{plan.device} "
            f"({plan.precision_reason}), {compiled} ({plan.compile_reason})."
        )

    def _summary(self, final: Likelihood) -> dict[str, Any]:
        config, floor = self.config, self.floor
        # a loss on a part of the split says nothing about the whole: then the last one counts
        best = min(self.best_loss, final.loss) if config.train.eval_tokens is None else final.loss
        lengths = [(token, self.tokenizer.token_bytes(token)) for token in range(self.tokenizer.vocab_size)]
        longest = sorted(lengths, key=lambda entry: len(entry[1]), reverse=True)[:20]
        return {
            "name": config.name,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "steps": self.done_steps,
            "tokens": self.done_steps * config.train.batch_tokens,
            "parameters": accounting.num_parameters(config.model.with_vocabulary(self.tokenizer.vocab_size)),
            "valid_loss": final.loss,
            "best_valid_loss": best,
            "perplexity": final.perplexity,
            "bits_per_byte": final.bits_per_byte,
            "floor_loss": floor.loss if floor else None,
            "floor_bits_per_byte": floor.bits_per_byte if floor else None,
            "seconds": self.training_seconds,
            "tokens_per_second": self.done_steps
            * config.train.batch_tokens
            / max(1e-9, self.training_seconds),
            "device": str(self.device),
            "precision": self.plan.precision,
            "compiled": self.plan.compile,
            "stopped_early": self.stopping is not None and self.done_steps < config.train.steps,
            "corpus": config.corpus.name,
            "optimizer": config.optimizer.name,
            "attention": config.model.implementation,
            "tokenizer": {
                "vocab_size": self.tokenizer.vocab_size,
                "bytes_per_token": self.valid_set.num_bytes / max(1, self.valid_set.num_tokens),
                "longest": [piece.decode("utf-8", errors="replace") for _, piece in longest],
            },
        }
