r"""A conversation comes in; token ids go out, with a mask of what the assistant says; and a Jinja template.

    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]

    special:  <|endoftext|><|user|>Hello<|end|><|assistant|>Hi<|end|>      the tokenizer has the four tokens
    plain:    <|endoftext|>User: Hello\nAssistant: Hi\n                    it has not: any base model can chat
    mask:                                             ^^^^^^^

A tokenizer that has `<|user|>`, `<|assistant|>`, `<|system|>` and `<|end|>` as special tokens marks each turn
with its role and `<|end|>`. With any other one roles are words at the beginning of a line, and blanks around
a message are left out. In both a conversation opens a document, as a prompt does. What a message says is
always text: `<|end|>` inside of it becomes ordinary tokens. A Jinja template makes text of it all, so in
other programs special tokens inside a message are special tokens.

The names are printable ASCII without blanks, because other readers of GGUF skip what is not. Source: the form
of the messages, https://platform.openai.com/docs/api-reference/chat; templates,
https://huggingface.co/docs/transformers/chat_templating.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchlm.tokenizer.base import END_OF_TEXT, Tokenizer
from scratchlm.tokenizer.streaming import repair_surrogates

ROLES = ("system", "user", "assistant")

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"

CHAT_TOKENS = (USER, ASSISTANT, SYSTEM, END)
"""The special tokens of a conversation; a tokenizer is trained with all of them, or chats in plain words."""

_LABELS = {"system": "System:", "user": "User:", "assistant": "Assistant:"}

_REFUSE = "{{ raise_exception('role: only system, user and assistant are known') }}"

_SPECIAL = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}" + _REFUSE + "{% endif %}"
    "{{ message['content'] }}{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ 'System: ' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' }}"
    "{% else %}" + _REFUSE + "{% endif %}"
    "{{ message['content'] | trim }}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class Conversation(NamedTuple):
    """The ids of a conversation."""

    ids: list[int]
    """Token ids."""
    mask: list[bool]
    """True on what the assistant says, the end of its turn included: what it shall learn."""


class ChatTemplate:
    """How a tokenizer writes conversations.

    Attributes:
        tokenizer: The tokenizer.
        special: Whether roles are special tokens; otherwise they are words.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take special tokens where the tokenizer has all four, else words."""
        self.tokenizer = tokenizer
        self.special = all(name in tokenizer.special_tokens for name in CHAT_TOKENS)
        first = tokenizer.special_tokens.get(END_OF_TEXT)
        self._first = [] if first is None else [first]

    @property
    def jinja(self) -> str:
        """The same as a Jinja template, for `transformers` and GGUF."""
        first = f"{{{{ '{END_OF_TEXT}' }}}}" if self._first else ""
        return first + (_SPECIAL if self.special else _PLAIN)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end the assistant's turn."""
        return [*([self.tokenizer.special_tokens[END]] if self.special else []), *self._first]

    @property
    def stop_texts(self) -> list[str]:
        """Texts that end the assistant's turn: with plain words, the next line that begins with a role."""
        return [] if self.special else [f"\n{label}" for label in _LABELS.values()]

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        """Return the ids of a conversation.

        Args:
            messages: {"role": "user", "content": "..."}, in order; roles are system, user and assistant.
            add_generation_prompt: End with the beginning of the assistant's turn.

        Raises:
            ValueError: A message is not of this form; it says which.
        """
        turns = list(check_messages(messages))
        if self.special:
            return self._special_ids(turns, add_generation_prompt).ids
        return [*self._first, *self.tokenizer.encode_ordinary(_plain_text(turns, add_generation_prompt)[0])]

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Return the ids of a whole conversation and which of them the assistant says.

        Raises:
            ValueError: As `render`; or, with plain words, the tokenizer changes the text.
        """
        turns = list(check_messages(messages))
        if self.special:
            return self._special_ids(turns, False)
        text, spans = _plain_text(turns, False)
        found = self.tokenizer.encode_with_offsets(text, disallowed_special=())
        said = np.zeros(len(text.encode("utf-8")) + 1, np.int64)
        for start, stop in spans:
            said[start + 1 : stop + 1] = 1
        counts = said.cumsum()[found.byte_offsets]
        mask = (counts[1:] > counts[:-1]).tolist()
        return Conversation([*self._first, *found.ids.tolist()], [*(False for _ in self._first), *mask])

    def _special_ids(self, turns: list[tuple[str, str]], prompt: bool) -> Conversation:
        names = self.tokenizer.special_tokens
        ids, mask = list(self._first), [False] * len(self._first)
        for role, content in turns:
            said = [*self.tokenizer.encode_ordinary(content), names[END]]
            ids += [names[f"<|{role}|>"], *said]
            mask += [False, *[role == "assistant"] * len(said)]
        return Conversation([*ids, names[ASSISTANT]], [*mask, False]) if prompt else Conversation(ids, mask)


def check_messages(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the role and the content of each message.

    Raises:
        ValueError: There is none, or one is not of the form that `ChatTemplate.render` says.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError('messages: must be a list of at least one {"role": "user", "content": "..."}.')
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f'messages[{number}]: must be {{"role": ..., "content": ...}}.')
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            text = f"messages[{number}].role: must be one of {', '.join(ROLES)}, not {str(role)[:40]!r}."
            raise ValueError(text)
        if not isinstance(content, str):
            raise ValueError(f"messages[{number}].content: must be a text.")
        unknown = sorted(str(key) for key in message if key not in ("role", "content"))
        if unknown:
            raise ValueError(f"messages[{number}].{unknown[0][:40]}: not known; role and content are.")
        yield role, content


def _plain_text(turns: list[tuple[str, str]], prompt: bool) -> tuple[str, list[tuple[int, int]]]:
    """The conversation in words, and the bytes of it that the assistant says."""
    text, spans, num_bytes = "", [], 0
    for role, content in turns:
        said = repair_surrogates(f" {content.strip()}\n")
        start = num_bytes + len(_LABELS[role])
        num_bytes = start + len(said.encode("utf-8"))
        text += _LABELS[role] + said
        if role == "assistant":
            spans.append((start, num_bytes))
    return (text + _LABELS["assistant"] if prompt else text), spans
