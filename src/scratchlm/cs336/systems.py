"""CS336, assignment 2 (systems): functions of the course's tests/adapters.py, over this library.

    get_flashattention_autograd_function_pytorch     kernels/attention_tiled.py
    get_flashattention_autograd_function_triton      kernels/gpu/attention_forward.py, attention_backward.py
    get_ddp, get_ddp_individual_parameters           distributed/ddp.py: overlapped with the backward pass
    get_ddp_bucketed                                 distributed/ddp.py: in buckets (edition of 2025)
    get_sharded_optimizer                            distributed/zero.py
    get_fsdp                                         distributed/fsdp.py (edition of 2026)

Those of FlashAttention return a torch.autograd.Function for heads that stand one below another in the batch:
apply(q, k, v, is_causal) with (batch, time, d_head). What it keeps for the backward pass is q, k, v, the
output and exactly one tensor of shape (batch, time), each query's logsumexp; the course's tests look for that
one. The others need a process group, as the course's tests make one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from scratchlm.distributed.ddp import Bucketed, DataParallel, Overlapped
from scratchlm.distributed.fsdp import FullySharded
from scratchlm.distributed.zero import ShardedOptimizer
from scratchlm.kernels.attention_reference import check_attention
from scratchlm.kernels.attention_tiled import FlashAttention2
from scratchlm.model.attention import CausalSelfAttention
from scratchlm.model.block import Block
from scratchlm.model.feedforward import FeedForward
from scratchlm.model.transformer import TransformerLM


def get_flashattention_autograd_function_pytorch() -> type:
    """Return FlashAttention-2 in tiles of plain tensor code; runs everywhere."""
    return FlashAttention2


def get_flashattention_autograd_function_triton() -> type:
    """Return FlashAttention-2 in Triton; runs on an NVIDIA GPU, or interpreted with TRITON_INTERPRET=1."""
    return FlashAttention2Triton


def get_ddp(module: Module) -> Module:
    """Return the module, its gradients averaged as the backward pass finds them."""
    return Overlapped(module)


def ddp_on_after_backward(ddp_model: DataParallel, optimizer: Optimizer) -> None:
    """Wait until all gradients are the mean over the processes."""
    ddp_model.finish_gradient_synchronization()


def get_ddp_individual_parameters(module: Module) -> Module:
    """Return what `get_ddp` returns, under its name of 2025."""
    return Overlapped(module)


def ddp_individual_parameters_on_after_backward(ddp_model: DataParallel, optimizer: Optimizer) -> None:
    """Do what `ddp_on_after_backward` does, under its name of 2025."""
    ddp_model.finish_gradient_synchronization()


def get_ddp_bucketed(module: Module, bucket_size_mb: float | None) -> Module:
    """Return the module, its gradients averaged in buckets; None puts all into one."""
    return Bucketed(module, bucket_mb=bucket_size_mb)


def ddp_bucketed_on_after_backward(ddp_model: DataParallel, optimizer: Optimizer) -> None:
    """Wait until all buckets are the mean over the processes."""
    ddp_model.finish_gradient_synchronization()


def ddp_bucketed_on_train_batch_start(ddp_model: Bucketed, optimizer: Optimizer) -> None:
    """Empty the buckets."""
    ddp_model.start_batch()


def get_sharded_optimizer(params: ParamsT, optimizer_cls: type[Optimizer], **kwargs: Any) -> Optimizer:
    """Return the optimizer, its state spread over the processes."""
    return ShardedOptimizer(params, optimizer_cls, **kwargs)


def get_fsdp(module: Module, compute_dtype: torch.dtype | None = None) -> Module:
    """Return the module, the parameters of its Linear and Embedding layers spread over the processes.

    The layers are found by the names of their classes: the course's own and torch's. This library's models
    read several layers' weights at once, so they are cut by what reads: each block, and the rest of a model,
    whose embedding and head are whole for the whole pass.
    """
    readers = (TransformerLM, Block, CausalSelfAttention, FeedForward)
    read_above = {
        inner
        for part in module.modules()
        if isinstance(part, readers)
        for inner in part.modules()
        if inner is not part
    }

    def is_sharded(part: Module) -> bool:
        is_layer = isinstance(part, readers) or type(part).__name__ in ("Linear", "Embedding")
        return isinstance(part, Block) or (is_layer and part not in read_above)

    return FullySharded(module, is_sharded, compute_dtype=compute_dtype)


def fsdp_on_after_backward(fsdp_model: FullySharded, optimizer: Optimizer) -> None:
    """Wait until every shard has the mean of its gradient over the processes."""
    fsdp_model.finish_gradient_synchronization()


def fsdp_gather_full_params(fsdp_model: FullySharded) -> dict[str, Tensor]:
    """Return every parameter whole, by its name in the module that was given to `get_fsdp`."""
    return fsdp_model.full_parameters()


class FlashAttention2Triton(torch.autograd.Function):
    """The library's Triton kernels in the form that CS336 asks for; for models take attention=triton."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """Return softmax(q k^T / sqrt(d_head)) v.

        Args:
            ctx: What is kept for the backward pass.
            q: Queries (batch, time, d_head); bfloat16, float16 or float32, as k and v.
            k: Keys (batch, keys, d_head).
            v: Values (batch, keys, d_value).
            is_causal: Whether a query sees nothing after itself; the queries are the last of the keys.

        Raises:
            ValueError: The shapes do not fit together, or the kernels do not run on these tensors.
        """
        from scratchlm.kernels.gpu.attention import attention_forward

        if not q.ndim == k.ndim == v.ndim == 3:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
            raise ValueError(f"FlashAttention2Triton: shapes {shapes}; all must be (batch, time, d_head).")
        heads = [tensor[:, None] for tensor in (q, k, v)]
        check_attention(*heads, causal=is_causal, window=None, slopes_H=None)
        _check_kernels_run(q, k, v)
        out, logsumexp = attention_forward(*heads, is_causal, None, None, None, None, "two_pass")
        out, logsumexp = out[:, 0], logsumexp[:, 0]
        ctx.is_causal = is_causal
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k and v."""
        from scratchlm.kernels.gpu.attention import attention_backward

        heads = [tensor[:, None] for tensor in (*ctx.saved_tensors, gradients[0])]
        dq, dk, dv = attention_backward(*heads, ctx.is_causal, None, None, None, None, "two_pass")
        return dq[:, 0], dk[:, 0], dv[:, 0], None


def _check_kernels_run(q: Tensor, k: Tensor, v: Tensor) -> None:
    from scratchlm.kernels.gpu.attention_tiles import MAX_WIDTH
    from scratchlm.kernels.gpu.support import require, require_heads

    require("attention", q, k, v)
    require_heads("FlashAttention2Triton", (q, k, v), MAX_WIDTH)
