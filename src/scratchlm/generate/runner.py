"""Tokens of some slots in, logits of their next tokens out: the model behind the engine.

    prefill(slot, ids)       several new tokens of one slot; their keys and values stay in its cache
    decode(slots, ids)       one new token of each of some slots
    truncate(slot, length)   the slot keeps its first tokens only
    copy(source, target, length)   a slot gets the first tokens of another one
    clear(slot)              the slot begins anew
    refresh()                the model's weights may have changed
    warm_up()                compile now what is compiled on first use

`PlainRunner` runs any model that has `hidden`, `head` and `make_cache`, each slot by itself: the naive twin
of runner_transformer.py, which computes all slots of a transformer together.

Source: slots of fixed size as in Yu et al. 2022 (Orca), https://www.usenix.org/conference/osdi22/presentation/yu,
section 4: the batch changes between two steps, not between two texts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module


class Runner(ABC):
    """What the engine needs of a model."""

    num_slots: int
    vocab_size: int
    context_length: int

    @abstractmethod
    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, "time d_model"]:
        """Compute the slot's next tokens; return the vectors that `logits` turns into logits."""

    @abstractmethod
    def logits(self, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return logits in float32 on the CPU."""

    @abstractmethod
    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Compute one further token of each slot; return the logits of what follows, in their order."""

    @abstractmethod
    def truncate(self, slot: int, length: int) -> None:
        """Keep the slot's first `length` tokens only."""

    @abstractmethod
    def copy(self, source: int, target: int, length: int) -> None:
        """Let a slot hold the first `length` tokens of another one, and nothing else."""

    @abstractmethod
    def clear(self, slot: int) -> None:
        """Forget the slot's tokens."""

    @abstractmethod
    def memory(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the blocks of keys and values that are held."""

    def refresh(self) -> None:  # noqa: B027
        """Take up the model's weights as they are now, where some were put together from others."""

    def warm_up(self) -> None:  # noqa: B027
        """Compile now what would be compiled on first use."""


class PlainRunner(Runner):
    """Any model, one slot after the other."""

    def __init__(self, model: Module, num_slots: int, *, use_cache: bool = True) -> None:
        """Prepare `num_slots` empty slots.

        Args:
            model: Token ids -> logits, with `config`, `hidden`, `head` and `make_cache`.
            num_slots: Texts that are kept at once.
            use_cache: Whether to keep keys and values; without it every token costs a pass over its window.
        """
        self.model = model
        self.num_slots, self.use_cache = num_slots, use_cache
        self.vocab_size: int = model.config.vocab_size
        self.context_length: int = model.config.context_length
        self._device = next(model.parameters()).device
        self._caches = [None] * num_slots
        self._ids: list[list[int]] = [[] for _ in range(num_slots)]

    @torch.no_grad()
    def prefill(self, slot: int, ids: Sequence[int]) -> Float[Tensor, "time d_model"]:
        """Compute the slot's next tokens; return their vectors."""
        if not self.use_cache:
            self._ids[slot] += ids
            return self._hidden(self._ids[slot])[-len(ids) :]
        if self._caches[slot] is None:
            self._caches[slot] = self.model.make_cache()
        return self._hidden(ids, cache=self._caches[slot])

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Return logits in float32 on the CPU."""
        return self.model.head(hidden).float().cpu()

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Compute one further token of each slot; return the logits of what follows."""
        return torch.cat(
            [self.logits(self.prefill(slot, [id])[-1:]) for slot, id in zip(slots, ids, strict=True)]
        )

    def truncate(self, slot: int, length: int) -> None:
        """Keep the slot's first `length` tokens only."""
        del self._ids[slot][length:]
        if self._caches[slot] is not None:
            self._caches[slot].truncate(length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a slot hold the first `length` tokens of another one, and nothing else."""
        self._ids[target] = self._ids[source][:length]
        if self._caches[source] is not None:
            if self._caches[target] is None:
                self._caches[target] = self.model.make_cache()
            self._caches[target].copy_from(self._caches[source], length)

    def clear(self, slot: int) -> None:
        """Forget the slot's tokens; its memory stays."""
        self._ids[slot] = []
        if self._caches[slot] is not None:
            self._caches[slot].clear()

    def memory(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the blocks of keys and values that are held."""
        for cache in self._caches:
            yield from () if cache is None else cache.blocks

    def _hidden(self, ids: Sequence[int], **cache: object) -> Float[Tensor, "time d_model"]:
        return self.model.hidden(torch.tensor([list(ids)], device=self._device), **cache)[0]
