"""What the user says comes in, the model's answer goes out, piece by piece; the conversation is remembered.

    messages -> ChatTemplate -> token ids -> Engine -> events -> text
                  ^ oldest exchanges left out until answer and prompt fit into the context

An answer that is stopped keeps what was said so far. The numbered seeds make it repeatable: the same words
after the same settings bring the same conversation.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from scratchlm.generate.engine import Engine
from scratchlm.generate.request import Event, Request
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.runtime import write_text_atomically
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.folder import LoadedRun


class Said(NamedTuple):
    """One token of an answer."""

    text: str
    """Text that became certain with it; may be empty."""
    probability: float
    """What the model gave the token, before temperature and filters."""


class Conversation:
    """A conversation with one model.

    Attributes:
        messages: {"role": ..., "content": ...}, what was said, behind the system message if there is one.
        sampling: How the next answer is written.
        num_forgotten: Messages that the last answer was written without, because they no longer fit.
    """

    def __init__(self, run: LoadedRun, sampling: SamplingConfig) -> None:
        """Begin with nothing said."""
        self.run, self.sampling = run, sampling
        self.template = ChatTemplate(run.tokenizer)
        self.engine = Engine(run.model, run.tokenizer, slots=1)
        self.engine.warm_up()  # while the user reads how to leave, not while the first answer is awaited
        self.messages: list[dict[str, str]] = []
        self.num_forgotten = 0
        self._num_answers = 0

    @property
    def system(self) -> str:
        """The system message; empty if there is none."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else ""

    @system.setter
    def system(self, content: str) -> None:
        said = self.messages[1:] if self.system else self.messages
        self.messages = [*([{"role": "system", "content": content}] if content else []), *said]

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages = self.messages[:1] if self.system else []

    def undo(self) -> str:
        """Take the last exchange back; return what the user said.

        Raises:
            ValueError: Nothing was said.
        """
        last = max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=None)
        if last is None:
            raise ValueError("nothing was said yet.")
        said = self.messages[last]["content"]
        del self.messages[last:]
        return said

    def ask(self, text: str, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Said]:
        """Say something and yield the answer.

        Args:
            text: What the user says.
            stopped: Asked between steps; True ends the answer, and what was said so far stays.

        Raises:
            ValueError: The text alone is longer than the context, or the model's logits are no numbers.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        request = Request(
            prompt_ids=self._fitting(messages),
            sampling=self.sampling.model_copy(
                update={
                    "seed": self.sampling.seed + self._num_answers,
                    "stop": (*self.sampling.stop, *self.template.stop_texts),
                }
            ),
            stop_ids=tuple(self.template.stop_ids),
        )
        self._num_answers += 1
        answer, ended = "", False
        number = self.engine.submit(request)
        try:
            for event in self._events(number, stopped):
                ended = event.finish_reason in ("stop", "length")
                said = event.text if answer or self.template.special else event.text.lstrip()
                answer += said
                yield Said(said, 1.0 if event.token is None else math.exp(event.token.logprob or 0.0))
        finally:
            self.engine.cancel(number)
            if answer or ended:
                self.messages = [*messages, {"role": "assistant", "content": answer}]

    def save(self, path: Path) -> None:
        """Write the conversation as one line of JSON, as `scratchlm sft` reads conversations."""
        kept = {"messages": self.messages, "run": self.run.config.name, "step": self.run.step}
        kept["sampling"] = self.sampling.model_dump(mode="json")
        write_text_atomically(path, json.dumps(kept, ensure_ascii=False) + "\n")

    def _events(self, number: int, stopped: Callable[[], bool]) -> Iterator[Event]:
        while self.engine.is_busy:
            if stopped():
                self.engine.cancel(number)
            for event in self.engine.step():
                if event.request_id != number:
                    continue  # the end of an answer that was left
                if event.finish_reason == "error":
                    raise ValueError(f"the answer broke off: {event.error}")
                yield event
                if event.finish_reason is not None:
                    return

    def _fitting(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of the conversation without its oldest exchanges, so that an answer fits behind them."""
        length = self.run.model.config.context_length
        room = min(self.sampling.max_new_tokens, length // 2)
        system, said = (messages[:1], messages[1:]) if self.system else ([], messages)
        self.num_forgotten = 0
        while True:
            ids = self.template.render([*system, *said])
            if len(ids) + room <= length:
                return ids
            later = next((i for i, m in enumerate(said) if i and m["role"] == "user"), None)
            if later is None:
                break
            self.num_forgotten += later
            said = said[later:]
        if len(ids) > length:
            raise ValueError(f"this message has {len(ids)} tokens, and the model sees {length}; shorten it.")
        return ids
