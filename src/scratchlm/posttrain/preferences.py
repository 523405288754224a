r"""Preference sets: entries of files in the usual forms come in, a prompt with two answers goes out.

    prompt_pairs   {"prompt": ... or "instruction": ..., "input": ..., "chosen": ..., "rejected": ...}
    hh             {"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": ...}: two whole conversations

In the second form the conversations are the same but for the assistant's last answer.

Source: Bai et al. 2022, https://arxiv.org/abs/2204.05862 and its data, https://github.com/anthropics/hh-rlhf.
"""

import re
from collections.abc import Mapping
from typing import Any

from scratchlm.posttrain import PREFERENCES
from scratchlm.posttrain.datasets import FileSource, Messages, Pair, Preferences, checked_messages, text_of

_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):[ \t]?")
"""Where somebody begins to speak."""
_ROLES = {"Human": "user", "Assistant": "assistant"}


class FilePreferences(FileSource[Pair], Preferences):
    """Pairs in files."""


def pair_of(prompt: Messages, chosen: str, rejected: str, where: str) -> Pair:
    """Return a pair.

    Raises:
        ValueError: Both answers are the same: there is nothing to prefer.
    """
    if chosen == rejected:
        raise ValueError("'chosen' and 'rejected' are the same")
    return Pair(prompt, chosen, rejected, where)


@PREFERENCES.register("prompt_pairs")
class PromptPairs(FilePreferences):
    """A prompt, a better and a worse answer."""

    def example(self, entry: Mapping[str, Any], where: str) -> Pair:
        """The prompt is a text, a list of messages, or an instruction with perhaps an input."""
        if isinstance(entry.get("prompt"), list):
            prompt = checked_messages(entry["prompt"], last="user")
        else:
            question = text_of(entry, "prompt", "instruction")
            if given := text_of(entry, "input", empty=True).strip():
                question = f"{question}\n\n{given}"
            prompt = ({"role": "user", "content": question},)
        return pair_of(prompt, text_of(entry, "chosen"), text_of(entry, "rejected"), where)


@PREFERENCES.register("hh")
class HelpfulHarmless(FilePreferences):
    """Two conversations that differ in the assistant's last answer."""

    def example(self, entry: Mapping[str, Any], where: str) -> Pair:
        """What both have in common is the prompt."""
        prompt, chosen = _last_answer(text_of(entry, "chosen"), "chosen")
        other, rejected = _last_answer(text_of(entry, "rejected"), "rejected")
        if prompt != other:
            raise ValueError("'chosen' and 'rejected' differ before the last answer")
        return pair_of(prompt, chosen, rejected, where)


def _last_answer(text: str, name: str) -> tuple[Messages, str]:
    """A conversation without its last answer, and that."""
    places = list(_TURN.finditer(text))
    if not places or places[0].start() > 0 or places[-1][1] != "Assistant":
        raise ValueError(f"{name!r} is no conversation that begins with Human: and ends with Assistant:")
    ends = [place.start() for place in places[1:]] + [len(text)]
    turns = [
        {"role": _ROLES[place[1]], "content": text[place.end() : end].strip()}
        for place, end in zip(places, ends, strict=True)
    ]
    if not turns[-1]["content"]:
        raise ValueError(f"{name!r} ends with an empty answer")
    return checked_messages(turns[:-1], last="user"), turns[-1]["content"]
