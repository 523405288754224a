r"""Tensors of attention come in, what a kernel is told about where they lie goes out.

    pointers       the first number's address and a stride for each dimension, rows contiguous
    descriptors    the same, in the form that a Hopper GPU's copy engine (TMA) reads: it fetches a whole block
                   on one thread's word, and delivers zeros for what lies outside

A descriptor asks for more: an address and strides that are multiples of 16 bytes. Slices of packed
projections have them whenever d_head is a multiple of 8; everything else is read by pointers.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from scratchlm.kernels.gpu.attention_scores import DOCUMENT_BLOCK, document_ranges_kernel

ALIGNMENT = 16
"""Bytes; what the copy engine asks of addresses and strides."""


class Masks(NamedTuple):
    """What the scores go through."""

    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    slopes: Tensor | None = None
    documents: Tensor | None = None


class Documents(NamedTuple):
    """What kernels read of the documents; all None without documents."""

    documents: Tensor | None
    lowest: Tensor | None
    highest: Tensor | None
    stride: int | None


def find_documents(documents_BS: Tensor | None) -> Documents:
    """Return the documents with the lowest and the highest number in each block of DOCUMENT_BLOCK tokens."""
    if documents_BS is None:
        return Documents(None, None, None, None)
    documents_BS = contiguous_rows(documents_BS)
    batch, num_keys = documents_BS.shape
    num_blocks = triton.cdiv(num_keys, DOCUMENT_BLOCK.value)
    lowest, highest = documents_BS.new_empty(2, batch, num_blocks).unbind()
    with torch.cuda.device_of(documents_BS):
        document_ranges_kernel[(num_blocks * batch,)](
            documents_BS, lowest, highest, documents_BS.stride(0), num_keys, BLOCK=DOCUMENT_BLOCK.value,
            num_warps=1,
        )  # fmt: skip
    return Documents(documents_BS, lowest, highest, documents_BS.stride(0))


def padded(width: int) -> int:
    """Return the power of two that a head's vectors are padded to in registers; products need at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def contiguous_rows(x: Tensor) -> Tensor:
    """Return x with contiguous rows: itself, or a copy if its last dimension is strided."""
    return x if x.stride(-1) == 1 else x.contiguous()


def empty_by_time(batch: int, num_heads: int, time: int, like: Tensor, width: int) -> Tensor:
    """Return memory for (batch, heads, time, width) that lies as (batch, time, heads, width).

    Then (heads width) together are a row, as a projection wants them: no copy.
    """
    return like.new_empty(batch, time, num_heads, width).transpose(1, 2)


def empty_numbers(batch: int, num_heads: int, time: int, like: Tensor) -> Tensor:
    """Return float32 memory for (batch, heads, time), one number per query, each head aligned."""
    # 16 numbers are 64 bytes; Triton compiles anew for strides that 16 does not divide
    aligned = triton.cdiv(time, 16) * 16
    return like.new_empty(batch, num_heads, aligned, dtype=torch.float32)[:, :, :time]


def aligned_numbers(numbers_BHT: Tensor) -> Tensor:
    """Return numbers that lie as `empty_numbers` makes them: themselves, or a copy."""
    made = empty_numbers(*numbers_BHT.shape, numbers_BHT)
    return numbers_BHT if numbers_BHT.stride() == made.stride() else made.copy_(numbers_BHT)


def can_describe(*tensors: Tensor) -> bool:
    """Return whether the copy engine can read all these tensors."""
    return all(
        x.numel() > 0
        and x.data_ptr() % ALIGNMENT == 0
        and all(
            size == 1 or (stride > 0 and stride * x.element_size() % ALIGNMENT == 0)
            for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True)
        )
        for x in tensors
    )


def describe(x_BHTK: Tensor, block_rows: int) -> TensorDescriptor:
    """Return a descriptor that delivers rows of one head as (1, 1, block_rows, padded width)."""
    # the stride of a dimension with one entry is never used, and torch may have put anything there
    strides = [s if size > 1 else 64 for size, s in zip(x_BHTK.shape[:-1], x_BHTK.stride()[:-1], strict=True)]
    return TensorDescriptor(
        x_BHTK, list(x_BHTK.shape), [*strides, 1], [1, 1, block_rows, padded(x_BHTK.shape[-1])]
    )


def describe_numbers(numbers_BHT: Tensor, block: int) -> TensorDescriptor:
    """Return a descriptor that delivers `block` numbers of one head, as (1, block)."""
    batch, num_heads, time = numbers_BHT.shape
    return TensorDescriptor(numbers_BHT, [batch * num_heads, time], [numbers_BHT.stride(1), 1], [1, block])
