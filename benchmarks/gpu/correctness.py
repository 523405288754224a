"""Are loss, norm, rotation and optimizers right on the device? Every kernel against float64."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from benchmarks.gpu.cases import Bench, Case, MissedError, Row
from benchmarks.gpu.check import check, refuses
from benchmarks.gpu.correctness_attention import beyond_int32
from benchmarks.gpu.correctness_optimizers import optimizers
from benchmarks.gpu.measure import compare, kernel
from torch import Tensor
from torch.nn import functional

VOCABULARY = 50_304
"""GPT-2's, padded to a multiple of 64."""


def correctness(bench: Bench) -> list[Case]:
    """All cases."""
    return [*_losses(bench), *_norms(bench), *_rotations(bench), *optimizers(bench)]


def correctness_large(bench: Bench) -> list[Case]:
    """Tensors of more than 2^31 numbers: they run alone, for they fill the device."""
    return [
        Case("attention, more than 2^31 numbers", partial(beyond_int32, bench)),
        Case("cross-entropy, more than 2^31 numbers", partial(_loss_beyond_int32, bench)),
    ]


def _losses(bench: Bench) -> Iterator[Case]:
    rows, vocabulary = bench.pick((1024, VOCABULARY), (5, 300))
    options: dict[str, dict[str, Any]] = {
        "": {},
        ", gradient over the logits": {"overwrite": True},
        ", float32": {"dtype": torch.float32},
        ", odd vocabulary": {"vocabulary": bench.pick(50_257, 301)},
        ", small vocabulary": {"vocabulary": 7},
        ", z-loss and label smoothing": {"z_loss": 1e-2, "label_smoothing": 0.1},
        ", some targets left out": {"ignore": 3},
    }
    for words, settings in options.items():
        settings = {"rows": rows, "vocabulary": vocabulary} | settings
        yield Case(f"cross-entropy{words}", partial(_loss, bench, **settings))
    yield Case("cross-entropy, a second backward pass is right or refused", partial(_second_backward, bench))
    for words, settings in {
        "": {},
        ", soft-cap": {"softcap": 15.0},
        ", few rows a chunk": {"chunk": 100},
    }.items():
        yield Case(f"head and loss in chunks{words}", partial(_chunked, bench, **settings))


def _targets(bench: Bench, rows: int, vocabulary: int, ignore: int = 0) -> Tensor:
    from scratchlm.loss import IGNORE

    targets = torch.arange(rows, device=bench.device) * 7919 % vocabulary
    targets[0], targets[-1] = vocabulary - 1, 0
    if ignore:
        targets[::ignore] = IGNORE
    return targets


def exact_losses(
    logits: Tensor, targets: Tensor, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """Each target's loss by torch's own function, in the logits' number format but at least float32."""
    from scratchlm.loss import IGNORE

    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(
        wide, targets, ignore_index=IGNORE, reduction="none", label_smoothing=label_smoothing
    )
    squares = z_loss * wide.logsumexp(dim=-1).square()
    return torch.where(targets == IGNORE, 0.0, losses + squares)


def _loss(
    bench: Bench,
    *,
    rows: int,
    vocabulary: int,
    dtype: torch.dtype | None = None,
    ignore: int = 0,
    overwrite: bool = False,
    **terms: float,
) -> Row:
    ours = partial(kernel("token_losses", "triton", bench), overwrite=overwrite)
    targets = _targets(bench, rows, vocabulary, ignore)
    logits = bench.randn(rows, vocabulary, dtype=dtype) * 4.0
    # what may be overwritten is no leaf, as in a model
    arguments = lambda leaves: ((leaves[0] * 1.0, targets), terms)  # noqa: E731
    return check(bench, ours, exact_losses, [logits], arguments, names=["d_logits"])


def _second_backward(bench: Bench) -> Row:
    ours = kernel("token_losses", "triton", bench)
    leaf = bench.randn(5, 100).requires_grad_()
    losses = ours(leaf * 1.0, _targets(bench, 5, 100), overwrite=True)
    upstream = torch.ones_like(losses)
    first = torch.autograd.grad(losses, leaf, upstream, retain_graph=True)[0].clone()
    try:
        second = torch.autograd.grad(losses, leaf, upstream, retain_graph=True)[0]
    except RuntimeError as error:
        return {"says": str(error).splitlines()[0][:200]}
    if not torch.equal(first, second):
        raise MissedError("a second backward pass gives another gradient", {})
    return {"says": "gives the same gradient"}


def _loss_beyond_int32(bench: Bench) -> Row:
    """All rows are computed, the last ones are compared: they lie behind 2^31 numbers."""
    ours = kernel("token_losses", "triton", bench)
    rows, vocabulary, last = bench.pick((65_536, VOCABULARY, 256), (6, 100, 2))
    targets = _targets(bench, rows, vocabulary)
    leaf = torch.empty(rows, vocabulary, device=bench.device, dtype=bench.half).normal_().requires_grad_()
    tail = leaf.detach()[-last:].clone()
    losses = ours(leaf * 1.0, targets)
    gradient = torch.autograd.grad(losses.sum(), leaf)[0][-last:].clone()
    found = [losses[-last:].detach(), gradient]
    del leaf, losses
    others = []
    for dtype in (bench.half, torch.float64):
        given = tail.to(dtype).requires_grad_()
        result = exact_losses(given, targets[-last:])
        others.append([result.detach(), torch.autograd.grad(result.sum(), given)[0]])
    return compare(found, *others, ["output", "d_logits"])


def _chunked(bench: Bench, *, chunk: int | None = None, softcap: float | None = None) -> Row:
    ours = kernel("chunked_cross_entropy", "triton", bench)
    rows, width, vocabulary = bench.pick((3000, 768, VOCABULARY), (9, 16, 100))
    targets = _targets(bench, rows, vocabulary, 5)
    leaves = [bench.randn(rows, width), (bench.randn(vocabulary, width, seed=1) * width**-0.5).to(bench.half)]
    settings: dict[str, Any] = {"softcap": softcap}
    if chunk is not None:
        settings["chunk_rows"] = bench.pick(chunk, 4)

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor, **_: Any) -> Tensor:
        logits = hidden @ weight.T
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return exact_losses(logits, targets).sum() / (targets >= 0).sum()

    arguments = lambda given: ((*given, targets), settings)  # noqa: E731
    return check(bench, ours, plain, leaves, arguments, names=["d_hidden", "d_weight"])


def _norms(bench: Bench) -> Iterator[Case]:
    shapes = bench.pick(
        ((4096, 768), (4096, 64), (1000, 1000), (512, 4096), (64, 16_384), (1, 768)), ((7, 48), (3, 100))
    )
    for rows, width in shapes:
        words = f"{rows:,} x {width:,}"
        yield Case(f"RMSNorm, {words}", partial(_norm, bench, rows, width, gain=True))
    rows, width = shapes[0]
    yield Case("RMSNorm, no gain", partial(_norm, bench, rows, width, gain=False))
    yield Case("RMSNorm, float32", partial(_norm, bench, rows, width, gain=True, dtype=torch.float32))
    yield Case("RMSNorm, rows apart in memory", partial(_norm, bench, rows, width, gain=True, strided=True))
    yield Case("RMSNorm, no rows", partial(_norm_of_nothing, bench))
    for rows, width in shapes[:2]:
        yield Case(f"addition and RMSNorm, {rows:,} x {width:,}", partial(_add_norm, bench, rows, width))


def _norm(
    bench: Bench,
    rows: int,
    width: int,
    *,
    gain: bool,
    dtype: torch.dtype | None = None,
    strided: bool = False,
) -> Row:
    from scratchlm.kernels.rms_norm import rms_norm_reference

    ours = kernel("rms_norm", "triton", bench)
    leaves = [bench.randn(rows, 2 * width if strided else width, dtype=dtype)]
    if gain:
        leaves.append(1.0 + 0.1 * bench.randn(width, dtype=torch.float32, seed=1))

    def arguments(given: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = given[0][:, :width] if strided else given[0]
        return (x, given[1] if gain else None), {}

    names = ["dx", "d_gain"] if gain else ["dx"]
    return check(bench, ours, rms_norm_reference, leaves, arguments, names=names, twice=True)


def _add_norm(bench: Bench, rows: int, width: int) -> Row:
    """The residual addition and the norm behind it; both results have gradients."""
    from scratchlm.kernels.rms_norm import add_rms_norm_reference

    ours = kernel("add_rms_norm", "triton", bench)
    leaves = [bench.randn(rows, width), bench.randn(rows, width, seed=1)]
    leaves.append(1.0 + 0.1 * bench.randn(width, dtype=torch.float32, seed=2))

    def both(function: Callable[..., Any]) -> Callable[..., Tensor]:
        return lambda *given: torch.cat(list(function(*given)))

    arguments = lambda given: (tuple(given), {})  # noqa: E731
    names = ["dx", "d_branch", "d_gain"]
    return check(bench, both(ours), both(add_rms_norm_reference), leaves, arguments, names=names)


def _norm_of_nothing(bench: Bench) -> Row:
    ours = kernel("rms_norm", "triton", bench)
    x = torch.empty(0, 64, device=bench.device, dtype=bench.half, requires_grad=True)
    gain = torch.ones(64, device=bench.device, requires_grad=True)
    gradients = torch.autograd.grad(ours(x, gain).sum(), (x, gain))
    if not torch.equal(gradients[1], torch.zeros_like(gain)):
        raise MissedError("the gain's gradient of no rows is not 0", {})
    return {}


def _rotations(bench: Bench) -> Iterator[Case]:
    for width in bench.pick((64, 128, 80), (16,)):
        yield Case(f"RoPE, d_head {width}", partial(_rotation, bench, width))
    yield Case("RoPE, odd width is refused", partial(_odd_rotation, bench))
    for words, qk_norm, kv_heads in (("", False, 12), (", QK-norm", True, 12), (", grouped heads", False, 4)):
        yield Case(f"projection, RoPE in place{words}", partial(_projection, bench, qk_norm, kv_heads))


def _angles(bench: Bench, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(tokens, device=bench.device, dtype=torch.float32)
    speeds = 10_000.0 ** (-torch.arange(0, width, 2, device=bench.device, dtype=torch.float32) / width)
    angles = places[:, None] * speeds
    return angles.cos(), angles.sin()


def _rotation(bench: Bench, width: int) -> Row:
    from scratchlm.kernels.rotate import rotate_reference

    ours = kernel("rotate", "triton", bench)
    tokens = bench.pick(1000, 9)
    cos, sin = _angles(bench, tokens, width)
    leaves = [bench.randn(3, 5, tokens, width)]
    # a kernel may turn its input in place: it gets a copy
    arguments = lambda given: ((given[0] * 1.0, cos.to(_wide(given[0])), sin.to(_wide(given[0]))), {})  # noqa: E731
    return check(bench, ours, rotate_reference, leaves, arguments, names=["dx"], twice=True)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _odd_rotation(bench: Bench) -> Row:
    ours = kernel("rotate", "triton", bench)
    cos, sin = _angles(bench, 8, 16)
    return refuses(lambda: ours(bench.randn(1, 1, 8, 15), cos, sin))


def _projection(bench: Bench, qk_norm: bool, kv_heads: int) -> Row:
    from scratchlm.kernels.project_heads import Angles, Gains

    ours = kernel("project_heads", "triton", bench)
    heads, width = 12, bench.pick(64, 16)
    if bench.tiny:
        heads, kv_heads = 4, kv_heads // 3 if kv_heads > 4 else 2
    d_model, rows, tokens = heads * width, 2, bench.pick(512, 9)
    cos, sin = _angles(bench, tokens, width)
    leaves = [
        bench.randn(rows, tokens, d_model),
        (bench.randn((heads + 2 * kv_heads) * width, d_model, seed=1) * d_model**-0.5).to(bench.half),
        *([1 + 0.1 * bench.randn(width, dtype=torch.float32, seed=s) for s in (2, 3)] if qk_norm else []),
    ]

    def arguments(given: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        wide = _wide(given[0])
        gains = Gains(given[2], given[3], 1e-5) if qk_norm else None
        settings = {"num_heads": heads, "num_kv_heads": kv_heads, "gains": gains}
        return (given[0], given[1]), settings | {"angles": Angles(cos.to(wide), sin.to(wide))}

    def whole(function: Callable[..., Any]) -> Callable[..., Tensor]:
        return lambda *given, **named: torch.cat(list(function(*given, **named)), dim=1)

    names = ["dx", "d_weight", "d_gain_q", "d_gain_k"][: len(leaves)]
    return check(bench, whole(ours), whole(_project_exactly), leaves, arguments, names=names)


def _project_exactly(
    x: Tensor, weight: Tensor, *, num_heads: int, num_kv_heads: int, gains: Any, angles: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The three steps of kernels/project_heads.py by the twins, in any number format."""
    from scratchlm.kernels.rms_norm import rms_norm_reference
    from scratchlm.kernels.rotate import rotate_reference

    product = (x @ weight.T).unflatten(-1, (num_heads + 2 * num_kv_heads, -1)).transpose(1, 2)
    q, k, v = product.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if gains is not None:
        q = rms_norm_reference(q, gains.q, eps=gains.eps)
        k = rms_norm_reference(k, gains.k, eps=gains.eps)
    return rotate_reference(q, *angles), rotate_reference(k, *angles), v
