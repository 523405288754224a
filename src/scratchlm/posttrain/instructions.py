"""Instruction sets: entries of files in the usual forms come in, conversations go out.

    alpaca           {"instruction": ..., "input": ..., "output": ...}
    messages         {"messages": [{"role": "user", "content": ...}, ...]}
    prompt_response  {"prompt": ..., "response": ...}, the names are settings
    dolly            {"instruction": ..., "context": ..., "response": ...}, or an Alpaca page as "prompt"
    gsm8k            {"question": ..., "answer": "... <<48/2=24>> ... #### 72"}

Source: Taori et al. 2023 (Alpaca), https://github.com/tatsu-lab/stanford_alpaca; Conover et al. 2023 (Dolly),
https://www.databricks.com/blog/2023/04/12/dolly-first-open-commercially-viable-instruction-tuned-llm; Cobbe
et al. 2021 (GSM8K), https://arxiv.org/abs/2110.14168.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from scratchlm.posttrain import INSTRUCTIONS
from scratchlm.posttrain.datasets import Example, FileSource, Instructions, checked_messages, text_of

_PAGE = re.compile(r"### Instruction:\s*\n(.*?)\n+### Response:", re.DOTALL)
"""The question in a page in Alpaca's form."""
_CALCULATION = re.compile(r"<<[^<>\n]*>>")
"""What GSM8K's authors let a calculator fill in."""


class FileInstructions(FileSource[Example], Instructions):
    """Conversations in files."""


def exchange(question: str, answer: str, where: str, system: str = "") -> Example:
    """Return a conversation of one question and its answer."""
    first = ({"role": "system", "content": system},) if system else ()
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example((*first, *turns), where)


@INSTRUCTIONS.register("alpaca")
class Alpaca(FileInstructions):
    """Instruction, perhaps an input, and output."""

    def example(self, entry: Mapping[str, Any], where: str) -> Example:
        """The input stands below the instruction."""
        question = text_of(entry, "instruction")
        if given := text_of(entry, "input", empty=True).strip():
            question = f"{question}\n\n{given}"
        return exchange(question, text_of(entry, "output", "response"), where)


@INSTRUCTIONS.register("messages")
class ChatMessages(FileInstructions):
    """Whole conversations, also of several turns."""

    def example(self, entry: Mapping[str, Any], where: str) -> Example:
        """Further names beside "messages" are left aside."""
        if "messages" not in entry:
            raise ValueError(f"has no 'messages', only {', '.join(map(str, list(entry)[:8])) or 'nothing'}")
        return Example(checked_messages(entry["messages"], last="assistant"), where)


@INSTRUCTIONS.register("prompt_response")
class PromptResponse(FileInstructions):
    """A prompt and a response, under names that are settings."""

    def __init__(
        self,
        *,
        paths: tuple[Path, ...],
        valid_paths: tuple[Path, ...] = (),
        on_bad: Literal["error", "skip"] = "error",
        most: int | None = None,
        prompt: str = "prompt",
        response: str = "response",
        system: str = "",
    ) -> None:
        """Choose the files and the names.

        Args:
            paths: As all file sources.
            valid_paths: Likewise.
            on_bad: Likewise.
            most: Likewise.
            prompt: Name of what the user says.
            response: Name of what the assistant says.
            system: What the system says in every conversation; nothing by default.
        """
        super().__init__(paths=paths, valid_paths=valid_paths, on_bad=on_bad, most=most)
        self.prompt, self.response, self.system = prompt, response, system

    def example(self, entry: Mapping[str, Any], where: str) -> Example:
        """One question and its answer."""
        question, answer = text_of(entry, self.prompt), text_of(entry, self.response)
        return exchange(question, answer, where, self.system)


@INSTRUCTIONS.register("dolly")
class Dolly(FileInstructions):
    """Dolly's questions, some with a text that they are about."""

    def example(self, entry: Mapping[str, Any], where: str) -> Example:
        """The context stands below the instruction; of a page in Alpaca's form the question is taken."""
        question = text_of(entry, "instruction", "prompt")
        if page := _PAGE.search(question):
            question = page[1].strip()
        if given := text_of(entry, "context", empty=True).strip():
            question = f"{question}\n\n{given}"
        return exchange(question, text_of(entry, "response"), where)


@INSTRUCTIONS.register("gsm8k")
class GSM8K(FileInstructions):
    """Word problems with a worked answer that ends in "#### number"."""

    def example(self, entry: Mapping[str, Any], where: str) -> Example:
        """The calculator's marks are left out."""
        answer = _CALCULATION.sub("", text_of(entry, "answer"))
        return exchange(text_of(entry, "question"), answer, where)
