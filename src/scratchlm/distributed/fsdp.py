r"""Fully sharded: a module comes in; each process keeps 1/N of its big parameters, borrows the rest in time.

    forward of layer i     all-gather its shards -> whole weight -> y = layer(x) -> free the whole weight
                           (meanwhile those of layers i + 1 and i + 2 are on their way)
    backward of layer i    all-gather again -> gradient of the whole weight -> reduce-scatter -> free both

    process 0:  [ a0 ]  --all-gather-->  [ a0 a1 ]  --backward-->  [ g0 g1 ]  --reduce-scatter-->  [ mean g0 ]
    process 1:  [ a1 ]                   [ a0 a1 ]                 [ h0 h1 ]                       [ mean h1 ]

Whole weights exist for a few layers at a time, so P parameters take about (4 + 4 + 8) P / N bytes on each of
N processes with AdamW, instead of 16 P. The price is traffic: parameters travel twice and gradients once, 3/2
of what data parallelism sends, hidden behind the computation of other layers.

A sharded parameter is a vector: the whole tensor's numbers in order, cut in N equal pieces, the last one
filled up with zeros, in the number format of the module that came in (float32, unless it was converted).
Whole weights may be in another format, the compute dtype; gradients are added up in the shards'. The
optimizer sees vectors: decide by name, before wrapping, which parameters are matrices that decay, and build
the groups from `model.module.named_parameters()` afterwards. Muon and others that look at whole matrices do
not work on shards: take zero.py. Clip with `clip_gradients`; torch's clip_grad_norm_ sees one shard of each.

Autograd keeps a reference to the whole weight for the backward pass; its memory is given back in between and
filled again when the gradient of the module's output is there. Parameters outside the selected modules stay
whole on every process, and their gradients are averaged as in ddp.py. Every process must run the same modules
in the same order. A weight is whole only while its selected module runs: others read the vector.

Source: Zhao et al. 2023, "PyTorch FSDP", https://arxiv.org/abs/2304.11277; Rajbhandari et al. 2020 (ZeRO
stage 3), https://arxiv.org/abs/1910.02054. One shard for each parameter, not one for a whole layer; those of
a selected module travel together (shard.py).
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook
from torch.nn import Module, Parameter
from torch.utils._pytree import tree_leaves

from scratchlm.distributed.buckets import average_gradients
from scratchlm.distributed.ddp import DataParallel
from scratchlm.distributed.shard import GradientShards, ShardedParameter, WholeWeights, travelling_together

PREFETCH = 2
"""Layers whose weights travel ahead of the one that computes; the course asks for two."""

Selection = tuple[type[Module], ...] | Callable[[Module], bool]
"""Which modules to shard: by type, or by a function that says so."""


class FullySharded(DataParallel):
    """A module whose big parameters are spread over the processes."""

    def __init__(
        self,
        module: Module,
        shard: Selection,
        *,
        compute_dtype: torch.dtype | None = None,
        prefetch: int = PREFETCH,
    ) -> None:
        """Replace the parameters of the selected modules by this process's shards of process 0's values.

        Build the optimizer afterwards, over `parameters()`.

        Args:
            module: The same architecture on every process.
            shard: Types of modules, or a predicate; all parameters inside such a module are cut, and are
                whole while it computes. In nested ones, the innermost selected module counts. A selected
                module returns tensors, or lists, tuples and dicts of them, and takes as arguments what needs
                a gradient.
            compute_dtype: Number format of whole weights and of the floating-point tensors that sharded
                modules take as arguments; None for the parameters' own.
            prefetch: Layers whose weights are fetched ahead, at least 0.

        Raises:
            ValueError: As `DataParallel`, nothing is selected, or prefetch is negative.
        """
        super().__init__(module)
        if prefetch < 0:
            raise ValueError(f"prefetch={prefetch}: must be at least 0; 0 fetches weights when needed.")
        self.compute_dtype, self.prefetch = compute_dtype, prefetch
        # selected modules: as this forward pass came to them, as the one before did, as this one left them
        self._order, self._previous, self._returned = [], [], []
        # gradients that travel: of the module that backward is in, and of the one before
        self._newest, self._older = [], []
        is_selected = (lambda part: isinstance(part, shard)) if isinstance(shard, tuple) else shard
        parts = {part: name for name, part in module.named_modules() if is_selected(part)}
        cut: dict[Parameter, ShardedParameter] = {}
        self._units = [self._shard(part, parts.keys() - {part}, cut) for part in parts]
        if not cut:
            raise ValueError("no parameter was selected to be sharded; name the types of the big layers.")
        self._sharded = {entry.shard: entry for entry in cut.values()}
        self._trained = [p for p in module.parameters() if p.requires_grad and p not in self._sharded]
        for unit, (part, name) in zip(self._units, parts.items(), strict=True):
            unit.name = f"{name or 'the whole module'} ({type(part).__name__})"
            unit.watched = [self._sharded[p].whole for p in part.parameters() if p.requires_grad]

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """Return what the module returns."""
        if _backward_pass() is None:  # otherwise a checkpoint computes this pass once more
            self._give_back()
            self._previous, self._order, self._returned = self._order, [], []
        try:
            return self.module(*arguments, **settings)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            error.add_note(
                "FullySharded: if a weight's shape is wrong here, a module reads the weight of another one "
                "whose forward does not run, and sees this process's shard; select the module that reads."
            )
            raise

    def start_batch(self) -> None:
        """Forget gradients on their way; on every process, after a backward pass that no step follows."""
        for message in self._messages():
            message.work.wait()
        for entry in self._sharded.values():
            entry.kept, entry.is_ready = None, False
        self._give_back()

    def finish_gradient_synchronization(self) -> None:
        """Wait for the shards' gradients; average those of the parameters that are whole everywhere."""
        for unit in self._units:  # no backward pass came to all of it outside no_synchronization
            kept = travelling_together(entry for entry in unit.entries if entry.kept is not None)
            self._newest += [GradientShards(together) for together in kept]
        for message in self._messages():
            message.receive()
        self._give_back()
        average_gradients(self._trained)

    def gradient_norm(self) -> Tensor:
        """Return the length of all mean gradients, the shards of all processes; as `DataParallel`."""
        return self._norm_of_shares(whole=self._trained, shares=self._sharded)

    @torch.no_grad()
    def full_parameters(self) -> dict[str, Tensor]:
        """Return every parameter whole, by its name in the module; every process must call it."""
        self._give_back()
        named, cut = self.module.named_parameters(remove_duplicate=False), self._sharded
        return {name: cut[p].gather_whole() if p in cut else p.clone() for name, p in named}

    def _shard(self, part: Module, others: set[Module], cut: dict[Parameter, ShardedParameter]) -> "_Unit":
        """Cut a module's parameters; borrow them whole around its forward and before its backward."""
        entries: dict[ShardedParameter, None] = {}
        own: list[ShardedParameter] = []  # without those that an earlier module has cut
        for holder in _inside(part, others):
            for key, whole in holder._parameters.items():
                if whole is None:  # a bias that is left out
                    continue
                if whole not in cut:  # one that is tied, or inside two selected modules, is cut once
                    cut[whole] = entry = ShardedParameter(whole, self.compute_dtype)
                    cut[entry.shard] = entry
                    own.append(entry)
                entries[cut[whole]] = None
                cut[whole].places.add((holder, key))
        for entry in entries:
            entry.put(entry.shard)
        unit = _Unit(list(entries))
        for together in travelling_together(entry for entry in own if entry.whole.requires_grad):
            for entry in together:
                is_ready = partial(self._gradient_is_ready, entry, together)
                entry.whole.register_post_accumulate_grad_hook(is_ready)
        if entries:
            before, after = (lambda _, *a: self._before(unit, *a)), (lambda _, *a: self._after(unit, *a))
            part.register_forward_pre_hook(before, with_kwargs=True)
            part.register_forward_hook(after, with_kwargs=True, always_call=True)
        return unit

    def _before(
        self, unit: "_Unit", inputs: tuple[Any, ...], settings: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        unit.fetch()
        if _backward_pass() is None:  # otherwise a checkpoint computes this module once more
            self._order.append(unit)
            self._fetch_ahead(unit, self._previous)
        unit.open()
        convert = partial(_converted, dtype=self.compute_dtype)
        return tuple(map(convert, inputs)), {key: convert(value) for key, value in settings.items()}

    def _after(self, unit: "_Unit", inputs: tuple[Any, ...], settings: dict[str, Any], output: Any) -> None:
        """Also after an exception: one ends every forward that a checkpoint runs a second time."""
        recomputes = _backward_pass() is not None
        unit.close(free=not recomputes)  # what is computed again is needed right away
        returned = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
        done = not recomputes and sys.exc_info()[0] is None
        if done and not returned and torch.is_grad_enabled() and unit.watched:
            raise ValueError(
                f"{unit.name} returned {type(output).__name__} without tensors: it is unknown when backward "
                "needs its weights; return tensors or lists, tuples, dicts of them, or select modules inside."
            )
        call = object()
        for tensor in (waiting := [tensor for tensor in returned if tensor.requires_grad]):
            tensor.register_hook(lambda gradient: self._before_backward(unit, call))
        if waiting:
            unit.free_frozen_after(call, tree_leaves((inputs, settings)))
            self._returned += [] if recomputes else [unit]

    def _before_backward(self, unit: "_Unit", call: object) -> None:
        for message in self._older if self._newest else ():  # two modules' gradients travel, not all
            message.receive()
        self._older, self._newest = self._newest or self._older, []
        unit.fetch()
        self._fetch_ahead(unit, self._returned[::-1])
        unit.begin_backward(call)

    def _gradient_is_ready(
        self, entry: ShardedParameter, together: list[ShardedParameter], whole: Tensor
    ) -> None:
        entry.keep_gradient()
        entry.is_ready = self._synchronizes
        if all(other.is_ready for other in together):
            self._newest.append(GradientShards(together))
        entry.free()

    def _messages(self) -> list[GradientShards]:
        travelling, self._newest, self._older = [*self._older, *self._newest], [], []
        return travelling

    def _fetch_ahead(self, unit: "_Unit", order: list["_Unit"]) -> None:
        """Begin to fetch the weights of the modules that follow."""
        place = order.index(unit) + 1 if unit in order else len(order)
        for following in order[place : place + self.prefetch]:
            following.fetch()

    def _give_back(self) -> None:
        """Put the shards back in their places, also where a pass was interrupted; free all whole weights."""
        for entry in self._sharded.values():
            entry.users = 0
            entry.calls.clear()
            entry.put(entry.shard)
            entry.free()
        for unit in self._units:
            unit.forget()


class _Unit:
    """A selected module's sharded parameters."""

    def __init__(self, entries: list[ShardedParameter]) -> None:
        self.name, self.entries = "", entries
        self.watched: list[Tensor] = []  # trained whole weights, also those of selected modules inside
        self.frozen = [entry for entry in entries if not entry.whole.requires_grad]
        self._runs = 0
        self._handles: list[Any] = []

    def fetch(self) -> None:
        for together in travelling_together(entry for entry in self.entries if not entry.is_here):
            WholeWeights(together)

    def open(self) -> None:
        """Put the whole weights in their places."""
        for entry in self.entries:
            entry.users += 1
            entry.put(entry.wait())  # a plain tensor: past Module's check on purpose
        self._runs += 1

    def close(self, *, free: bool) -> None:
        """Put the shards back, where no other module that is running uses the weight."""
        if self._runs == 0:  # interrupted before the weights came
            return
        self._runs -= 1
        for entry in self.entries:
            entry.users -= 1
            if entry.users == 0:
                entry.put(entry.shard)
                if free:
                    entry.free()

    def begin_backward(self, call: object) -> None:
        for entry in self.entries:
            entry.wait()
            if entry in self.frozen:
                entry.calls[call] = _backward_pass()

    def free_frozen_after(self, call: object, inputs: list[Any]) -> None:
        """Give frozen weights back when backward has left; trained ones go with their gradients."""
        given = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
        if self.frozen and (watched := given + self.watched):
            self._handles.append(register_multi_grad_hook(watched, lambda gradients: self._leave(call)))

    def _leave(self, call: object) -> None:
        for entry in self.frozen:
            if entry.calls.get(call) == _backward_pass():  # not the pass of a checkpoint inside
                del entry.calls[call]
                entry.free()

    def forget(self) -> None:
        """Expect no backward pass any more."""
        self._runs = 0
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _inside(part: Module, others: set[Module]) -> Iterator[Module]:
    """A module and those inside it, without other selected ones."""
    yield part
    for child in part.children():
        if child not in others:
            yield from _inside(child, others)


def _backward_pass() -> int | None:
    """The number of the backward pass that runs now; None where none does."""
    number = torch._C._current_graph_task_id()  # torch's own checkpointing asks so, too
    return None if number == -1 else number


def _converted(value: Any, dtype: torch.dtype | None) -> Any:
    matters = dtype is not None and isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if matters else value
