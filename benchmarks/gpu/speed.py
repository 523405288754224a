"""How fast are loss, norm, rotation and optimizers? Beside what memory and matrix units can do at best."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from benchmarks.gpu.cases import Bench, Case, Row
from benchmarks.gpu.correctness import VOCABULARY, _angles
from benchmarks.gpu.measure import kernel, milliseconds, peak_bytes
from torch import Tensor
from torch.nn import functional

COPY_BYTES = 2**32
"""Copied for the memory's rate: 4 GiB, a hundred times the cache."""


def machine(bench: Bench) -> list[Case]:
    """What this device can do at best: the ceilings that the other figures are compared with."""
    return [
        Case("copy", partial(_copy, bench)),
        Case("matrix product, 8192 x 8192 x 8192", partial(_product, bench)),
    ]


def _copy(bench: Bench) -> Row:
    source = bench.randn(bench.pick(COPY_BYTES // 2, 1000))
    target = torch.empty_like(source)
    row = milliseconds(bench, lambda: target.copy_(source))
    return _bandwidth(row, 2 * _bytes(source)) | {"goal": None, "ceiling": "copy"}


def _product(bench: Bench) -> Row:
    size = bench.pick(8192, 32)
    a, b = bench.randn(size, size), bench.randn(size, size, seed=1)
    out = torch.empty_like(a)
    row = milliseconds(bench, lambda: torch.mm(a, b, out=out))
    rate = {"rate": 2 * size**3 / row["ms"] / 1e9, "unit": "TFLOP/s"}
    return row | rate | {"goal": None, "ceiling": "product"}


def speed(bench: Bench) -> list[Case]:
    """All cases."""
    parts = (_losses, _norms, _rotations, _adamw, _newton_schulz)
    cases = [case for part in parts for case in part(bench)]
    # what torch has to compile comes last: it takes seconds each
    return sorted(cases, key=lambda case: "compiled" in case.name)


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bandwidth(row: Row, num_bytes: float) -> Row:
    """The fewest bytes that must be read and written, per second."""
    return row | {"rate": num_bytes / row["ms"] / 1e6, "unit": "GB/s", "bytes": num_bytes}


def _losses(bench: Bench) -> Iterator[Case]:
    words = "cross-entropy forward+backward, 65,536 x 50,304"
    for name in ("triton", "triton, one kernel", "torch compiled", "torch"):
        yield Case(f"{words}, {name}", partial(_loss, bench, name, "cross-entropy"))
    words = "head and loss forward+backward, 65,536 x 768 x 50,304"
    yield Case(f"{words}, triton in chunks", partial(_head, bench, "triton"))
    yield Case(f"{words}, torch compiled", partial(_head, bench, "torch compiled"))


def _loss(bench: Bench, name: str, goal: str) -> Row:
    rows, vocabulary = bench.pick((65_536, VOCABULARY), (4, 100))
    leaf = torch.empty(rows, vocabulary, device=bench.device, dtype=bench.half).normal_().requires_grad_()
    targets = torch.arange(rows, device=bench.device) * 7919 % vocabulary
    function = _loss_function(bench, name)
    made: dict[str, Tensor] = {}

    def prepare() -> None:
        made.clear()
        # a copy made by an operation, as a model's logits are: ours writes the gradient over it
        made["logits"] = leaf * 1.0

    work = lambda: function(made["logits"], targets)  # noqa: E731
    row = milliseconds(bench, work, prepare)
    prepare()
    # read for the sum, read and written for the gradient
    fields = {"goal": goal, "candidate": name, "peak_bytes": peak_bytes(bench, work)}
    return _bandwidth(row, 3 * _bytes(leaf)) | fields


def _loss_function(bench: Bench, name: str) -> Callable[[Tensor, Tensor], Any]:
    """Loss and gradient of logits."""
    if name == "triton, one kernel":
        from scratchlm.kernels.gpu.cross_entropy import losses_and_gradient_

        return lambda logits, targets: losses_and_gradient_(logits.detach(), targets)
    if name == "triton":
        losses = partial(kernel("token_losses", "triton", bench), overwrite=True)
        return lambda logits, targets: torch.autograd.grad(losses(logits, targets).mean(), logits)
    plain = lambda logits, targets: functional.cross_entropy(logits.float(), targets)  # noqa: E731
    if "compiled" in name:
        plain = torch.compile(plain, backend=bench.pick("inductor", "aot_eager"))
    return lambda logits, targets: torch.autograd.grad(plain(logits, targets), logits)


def _head(bench: Bench, name: str) -> Row:
    rows, width, vocabulary = bench.pick((65_536, 768, VOCABULARY), (6, 16, 100))
    hidden = bench.randn(rows, width).requires_grad_()
    weight = (bench.randn(vocabulary, width, seed=1) * width**-0.5).to(bench.half).requires_grad_()
    targets = torch.arange(rows, device=bench.device) * 7919 % vocabulary
    if name == "triton":
        function = kernel("chunked_cross_entropy", "triton", bench)
    else:
        plain = lambda h, w, t: functional.cross_entropy((h @ w.T).float(), t)  # noqa: E731
        function = torch.compile(plain, backend=bench.pick("inductor", "aot_eager"))
    work = lambda: torch.autograd.grad(function(hidden, weight, targets), (hidden, weight))  # noqa: E731
    row = milliseconds(bench, work)
    rate = {"rate": 6 * rows * width * vocabulary / row["ms"] / 1e9, "unit": "TFLOP/s"}
    return row | rate | {"goal": None, "candidate": name, "peak_bytes": peak_bytes(bench, work)}


def _norms(bench: Bench) -> Iterator[Case]:
    for rows, width in ((65_536, 768), (32_768, 4096)):
        for what in ("forward", "backward"):
            for name in ("triton", "torch compiled"):
                words = f"RMSNorm {what}, {rows:,} x {width:,}, {name}"
                yield Case(words, partial(_norm, bench, (rows, width), what, name))


def _norm(bench: Bench, shape: tuple[int, int], what: str, name: str) -> Row:
    rows, width = bench.pick(shape, (8, 32))
    x = bench.randn(rows, width).requires_grad_()
    gain = torch.ones(width, device=bench.device, requires_grad=True)
    upstream = bench.randn(rows, width, seed=1)
    function = _norm_function(bench, name, width)
    if what == "forward":
        row, tensors = milliseconds(bench, lambda: function(x, gain)), 2
    else:
        out = function(x, gain)
        work = partial(torch.autograd.grad, out, (x, gain), upstream, retain_graph=True)
        row, tensors = milliseconds(bench, work), 3
    fields = {"goal": f"rmsnorm-{what}", "candidate": name, "shape": f"{rows:,} x {width:,}"}
    return _bandwidth(row, tensors * _bytes(upstream)) | fields


def _norm_function(bench: Bench, name: str, width: int) -> Callable[..., Tensor]:
    if name == "triton":
        return kernel("rms_norm", "triton", bench)
    plain = lambda x, gain: functional.rms_norm(x, (width,), gain.to(x.dtype), 1e-5)  # noqa: E731
    return torch.compile(plain, backend=bench.pick("inductor", "aot_eager"))


def _rotations(bench: Bench) -> Iterator[Case]:
    words = "q and k of 64 x 1,024 tokens, 12 heads, d 64"
    for name in ("triton", "triton, in place", "plain, compiled"):
        yield Case(f"RoPE forward, {words}, {name}", partial(_rotation, bench, "forward", name))
    for name in ("triton", "plain, compiled"):
        yield Case(f"RoPE backward, {words}, {name}", partial(_rotation, bench, "backward", name))
    for name in ("triton", "plain, compiled"):
        words = f"projection and RoPE forward+backward, 64 x 1,024 tokens, d_model 768, {name}"
        yield Case(words, partial(_projection, bench, name))


def _rotation(bench: Bench, what: str, name: str) -> Row:
    """Queries and keys lie in one packed projection with the values: every third part is left alone."""
    batch, tokens, heads, width = bench.pick((64, 1024, 12, 64), (1, 8, 2, 16))
    packed = bench.randn(batch, tokens, 3 * heads, width)
    qk = packed.transpose(1, 2)[:, : 2 * heads].detach().requires_grad_()
    cos, sin = _angles(bench, tokens, width)
    upstream = bench.randn(batch, tokens, 2 * heads, width, seed=1).transpose(1, 2)
    if "in place" in name:
        from scratchlm.kernels.gpu.rotate import rotate_

        row = milliseconds(bench, lambda: rotate_(packed, cos, sin, 2 * heads))
        return _bandwidth(row, 2 * _bytes(upstream)) | {"goal": f"rope-{what}", "candidate": name}
    function = _maybe_compiled(bench, "rotate", name)
    if what == "forward":
        row = milliseconds(bench, lambda: function(qk, cos, sin))
    else:
        out = function(qk, cos, sin)
        row = milliseconds(bench, partial(torch.autograd.grad, out, qk, upstream, retain_graph=True))
    return _bandwidth(row, 2 * _bytes(upstream)) | {"goal": f"rope-{what}", "candidate": name}


def _maybe_compiled(bench: Bench, op: str, name: str) -> Callable[..., Any]:
    """Our kernel, or the plain way after torch has compiled it."""
    if name == "triton":
        return kernel(op, "triton", bench)
    return torch.compile(kernel(op, "plain", bench), backend=bench.pick("inductor", "aot_eager"))


def _projection(bench: Bench, name: str) -> Row:
    from scratchlm.kernels.project_heads import Angles

    batch, tokens, heads, width = bench.pick((64, 1024, 12, 64), (1, 8, 2, 16))
    d_model = heads * width
    x = bench.randn(batch, tokens, d_model).requires_grad_()
    weight = (bench.randn(3 * d_model, d_model, seed=1) * d_model**-0.5).to(bench.half).requires_grad_()
    angles = Angles(*_angles(bench, tokens, width))
    function = _maybe_compiled(bench, "project_heads", name)
    upstream = [bench.randn(batch, tokens, heads, width, seed=s).transpose(1, 2) for s in (2, 3, 4)]

    def work() -> None:
        out = function(x, weight, num_heads=heads, num_kv_heads=heads, angles=angles)
        torch.autograd.grad(list(out), (x, weight), upstream)

    row = milliseconds(bench, work)
    rate = {"rate": 18 * batch * tokens * d_model**2 / row["ms"] / 1e9, "unit": "TFLOP/s"}
    return row | rate | {"goal": None, "candidate": name}


def gpt2_small(bench: Bench) -> list[tuple[int, ...]]:
    """The shapes of our 124 million parameters: 12 layers, d_model 768, vocabulary 50,304, tied."""
    if bench.tiny:
        return [(100, 16), (16, 16), (16,)]
    layer: list[tuple[int, ...]] = [(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)] + [(768,)] * 2
    return [(VOCABULARY, 768), *layer * 12, (768,)]


def _adamw(bench: Bench) -> Iterator[Case]:
    for name in ("triton", "torch fused", "torch foreach", "plain"):
        yield Case(f"AdamW, 124 million float32 numbers, {name}", partial(_adamw_step, bench, name))


def _adamw_step(bench: Bench, name: str) -> Row:
    from scratchlm.optim.adamw import AdamW

    shapes = gpt2_small(bench)
    params = [
        torch.nn.Parameter(bench.randn(*shape, dtype=torch.float32, seed=s)) for s, shape in enumerate(shapes)
    ]
    for seed, p in enumerate(params):
        p.grad = 1e-3 * bench.randn(*p.shape, dtype=torch.float32, seed=seed + 1000)
    if name.startswith("torch"):
        kind = {"fused": True} if "fused" in name else {"foreach": True}
        optimizer: Any = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.1, **kind)
    else:
        optimizer = AdamW(params, lr=1e-4, weight_decay=0.1)
        if name == "plain":
            optimizer._move = kernel("adamw", "plain", bench)
    row = milliseconds(bench, optimizer.step)
    # parameter, gradient and two means are read, all but the gradient are written
    return _bandwidth(row, 7 * _bytes(*params)) | {"goal": "adamw", "candidate": name}


def _newton_schulz(bench: Bench) -> Iterator[Case]:
    for name in ("triton", "plain"):
        yield Case(f"Newton-Schulz, matrices of 12 layers, {name}", partial(_orthogonalize, bench, name))


def _orthogonalize(bench: Bench, name: str) -> Row:
    shapes = bench.pick(((48, 768, 768), (36, 768, 2048)), ((2, 16, 24),))
    function = kernel("orthogonalize", name, bench)
    stacks = [bench.randn(*shape, dtype=torch.float32, seed=seed) for seed, shape in enumerate(shapes)]
    settings = {"dtype": torch.float16} if bench.tiny else {}

    def work() -> None:
        for stack in stacks:
            function(stack, **settings)

    row = milliseconds(bench, work)
    # five times: x x^T, G G, G x, each counted whole
    operations = sum(5 * 2 * n * (2 * r * r * c + r**3) for n, r, c in shapes)
    rate = {"rate": operations / row["ms"] / 1e9, "unit": "TFLOP/s"}
    return row | rate | {"goal": "newton-schulz", "candidate": name}
