"""Keys and values of the tokens so far, kept so that a new token costs one step, not the whole text again.

One block of memory per layer for keys and one for values, of shape (batch, kv_heads, capacity, d_head),
made once: a new token is written in place, nothing grows. It is allocated at the first `append`, in the
number format that the model computes in.
"""

from jaxtyping import Float
from torch import Tensor


class KVCache:
    """The past of every layer; `length` tokens of at most `capacity`."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        """Prepare an empty cache.

        Args:
            num_layers: Layers that keep keys and values.
            capacity: The most tokens it can hold.
        """
        self.capacity = capacity
        self.length = 0
        self._blocks: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def append(
        self,
        layer: int,
        k_BGTK: Float[Tensor, "batch kv_heads time d_head"],
        v_BGTK: Float[Tensor, "batch kv_heads time d_head"],
    ) -> tuple[Float[Tensor, "batch kv_heads keys d_head"], Float[Tensor, "batch kv_heads keys d_head"]]:
        """Store the new tokens' keys and values of one layer; return those of all tokens so far.

        `length` counts the new tokens only after `advance`, so every layer of one forward pass writes to
        the same place.

        Raises:
            ValueError: The tokens do not fit.
        """
        end = self.length + k_BGTK.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"KVCache: {end} tokens do not fit into capacity={self.capacity}; make a larger cache."
            )
        block = self._blocks[layer]
        if block is None:
            batch, heads, _, d_head = k_BGTK.shape
            block = (
                k_BGTK.new_empty(batch, heads, self.capacity, d_head),
                v_BGTK.new_empty(batch, heads, self.capacity, d_head),
            )
            self._blocks[layer] = block
        keys, values = block
        keys[:, :, self.length : end] = k_BGTK
        values[:, :, self.length : end] = v_BGTK
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` as stored, once all layers have written them."""
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens only.

        Raises:
            ValueError: There are not so many.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"KVCache: length={length}; keep 0 to {self.length} tokens.")
        self.length = length

    def copy_from(self, other: "KVCache", length: int) -> None:
        """Hold the first `length` tokens of another cache of the same model, and nothing else.

        Raises:
            ValueError: The other one has not so many, or this one has no room for them.
        """
        if not 0 <= length <= min(other.length, self.capacity):
            raise ValueError(
                f"KVCache: length={length}; copy 0 to {min(other.length, self.capacity)} tokens of this one."
            )
        for layer, block in enumerate(other._blocks):
            if block is not None:
                self.length = 0
                self.append(layer, *(tensor[:, :, :length] for tensor in block))
        self.length = length

    def repeated(self, rows: int, capacity: int) -> "KVCache":
        """Return a cache of `rows` copies of this one's only text, with room for `capacity` tokens each."""
        made = KVCache(len(self._blocks), capacity)
        for layer, block in enumerate(self._blocks):
            if block is not None:
                made.append(
                    layer, *(tensor[:, :, : self.length].expand(rows, -1, -1, -1) for tensor in block)
                )
        made.length = self.length
        return made

    def clear(self) -> None:
        """Forget all tokens; the memory stays."""
        self.length = 0

    @property
    def num_bytes(self) -> int:
        """Memory that the cache holds."""
        return sum(tensor.numel() * tensor.element_size() for block in self.blocks for tensor in block)

    @property
    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """The memory itself: keys and values of each layer that has stored any."""
        return [block for block in self._blocks if block is not None]
