r"""Distillation: a trained teacher and conversations come in, a smaller model that answers like it goes out.

    logits    loss = (1 - data_weight) * t^2 * mean KL(p_teacher || p_student)  +  data_weight * cross-entropy
              over the assistant's tokens, p = softmax(logits / t)
    samples   the teacher answers each conversation's last question once; the student learns its answers

Logits say of each token how likely all others were: far more than one sample, but both models must have one
tokenizer and the teacher goes along in each step. Samples are text: any teacher of any size, asked once, its
answers kept in the run's folder as teacher.jsonl. Held-out conversations are measured as the data has them.

Sources: Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531, section 2 (t^2 keeps the gradient's
size); samples: Kim and Rush 2016, https://arxiv.org/abs/1606.07947, section 3.2.
"""

import json
import time

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm import runtime
from scratchlm.data.permutation import mix
from scratchlm.generate.engine import Engine as Writer
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.loss import IGNORE, token_losses
from scratchlm.posttrain import STAGES
from scratchlm.posttrain.config import DistillConfig
from scratchlm.posttrain.datasets import Example
from scratchlm.posttrain.objective import StageObjective
from scratchlm.posttrain.packing import PADDING, ConversationSet
from scratchlm.posttrain.rollout import SEED_BITS, ask
from scratchlm.posttrain.sft import Sft
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.events import Message as Note
from scratchlm.train.events import OnEvent, PhaseEnded, PhaseStarted
from scratchlm.train.folder import LoadedRun, load_run
from scratchlm.train.trainer import Execution


class DistillObjective(StageObjective):
    """Divergence from a teacher over the assistant's tokens."""

    def __init__(self, model: Module, teacher: Module, how: Execution, config: DistillConfig) -> None:
        """Keep both; only `model` learns."""
        super().__init__(model, how)
        # a module of a module would be trained, saved and moved with it
        self._teacher = (teacher.eval().requires_grad_(False).to(how.device),)
        self.temperature, self.data_weight = config.temperature, config.data_weight

    def forward(
        self,
        inputs: Int[Tensor, "rows time"],
        targets: Int[Tensor, "rows time"],
        documents: Int[Tensor, "rows time"],
    ) -> Float[Tensor, ""]:
        """Return the mean loss over the targets that count."""
        self.num_tokens += int((documents < PADDING).sum())
        counts = targets != IGNORE
        with runtime.autocast(self.device, self.precision):
            student = self.model.head(self.model.hidden(inputs, documents=documents)[counts]).float()
            with torch.no_grad():
                (teacher,) = self._teacher
                wanted = teacher.head(teacher.hidden(inputs, documents=documents)[counts]).float()
        divergence = divergence_of(student, wanted, self.temperature)
        from_data = token_losses(student, targets[counts])
        self.add("divergence", divergence.sum(), len(divergence))
        self.add("data_loss", from_data.sum(), len(from_data))
        return ((1 - self.data_weight) * divergence + self.data_weight * from_data).mean()


def divergence_of(
    student: Float[Tensor, "tokens vocab"], teacher: Float[Tensor, "tokens vocab"], temperature: float
) -> Float[Tensor, " tokens"]:
    """Return t^2 KL(p_teacher || p_student) of each token; the teacher gets no gradient."""
    log_q = _log_softmax(student / temperature)
    log_p = _log_softmax(teacher.detach() / temperature)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)


@STAGES.register("distill")
class Distill(Sft):
    """Answer as a teacher does."""

    Config = DistillConfig
    config: DistillConfig

    def prepare(self, on_event: OnEvent) -> None:
        """Read the data; with samples, let the teacher answer."""
        self.teacher: LoadedRun | None = None
        if self.config.learn_from == "logits":
            self.teacher = self._load()
            self._check_same_tokens(self.teacher)
        super().prepare(on_event)

    def make_objective(self, model: Module, how: Execution) -> StageObjective:
        """Divergence from the teacher's logits, or cross-entropy on its answers."""
        if self.teacher is None:
            return super().make_objective(model, how)
        return DistillObjective(model, self.teacher.model, how, self.config)

    def _written(self, examples: list[Example], name: str, on_event: OnEvent) -> ConversationSet:
        if self.config.learn_from == "samples" and name == "train" and examples:
            examples = self._answered(examples, on_event)
        return super()._written(examples, name, on_event)

    def _load(self) -> LoadedRun:
        config = self.config
        longest = self.base.settings.context_length
        return load_run(
            config.teacher, device="cpu", checkpoint=config.teacher_checkpoint, context_length=longest
        )

    def _check_same_tokens(self, teacher: LoadedRun) -> None:
        if teacher.tokenizer.fingerprint != self.base.tokenizer.fingerprint:
            raise ValueError(
                f"teacher={self.config.teacher}: has another tokenizer than the student, with the tokens "
                "of a conversation unless chat=plain; learn_from=samples takes any teacher."
            )

    def _answered(self, examples: list[Example], on_event: OnEvent) -> list[Example]:
        """The examples with the teacher's answers; asked once, then read from the run's folder."""
        file = self.folder.path / "teacher.jsonl"
        if not file.is_file():
            on_event(PhaseStarted("teacher", f"{len(examples):,} questions to {self.config.teacher}"))
            started = time.perf_counter()
            answers = self._ask(examples)
            lines = [
                json.dumps({"where": e.where, "answer": a}) for e, a in zip(examples, answers, strict=True)
            ]
            runtime.write_text_atomically(file, "".join(line + "\n" for line in lines))
            on_event(PhaseEnded("teacher", time.perf_counter() - started, {"answers": len(answers)}))
        said = [json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()]
        if len(said) != len(examples):
            raise ValueError(
                f"{file}: has {len(said)} answers for {len(examples)} questions: the data changed; delete it."
            )
        kept = [
            Example((*example.messages[:-1], {"role": "assistant", "content": text}), example.where)
            for example, text in zip(examples, said, strict=True)
            if text.strip()
        ]
        if len(kept) < len(examples):
            on_event(
                Note(f"{len(examples) - len(kept):,} answers of the teacher are empty and were left out.")
            )
        if not kept:
            raise ValueError(f"teacher={self.config.teacher}: answered nothing; is it trained to answer?")
        return kept

    def _ask(self, examples: list[Example]) -> list[str]:
        config, teacher = self.config, self._load()
        settings = config.answers
        template = ChatTemplate(teacher.tokenizer)
        engine = Writer(teacher.model, teacher.tokenizer, slots=min(settings.slots, len(examples)))
        most = teacher.model.config.context_length - settings.max_new_tokens
        answers = [""] * len(examples)
        requests = {}
        for number, example in enumerate(examples):
            ids = template.render(example.messages[:-1])
            if len(ids) > most:
                continue  # no room: left out as an empty answer
            sampling = SamplingConfig(
                temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens,
                seed=mix(config.seed, number) % 2**SEED_BITS,
            )
            requests[number] = ask(ids, template, sampling)
        for number, result in zip(requests, engine.run(requests.values()), strict=True):
            answers[number] = result.choices[0].text
        return answers


def _log_softmax(logits: Tensor) -> Tensor:
    return logits - logits.logsumexp(dim=-1, keepdim=True)
