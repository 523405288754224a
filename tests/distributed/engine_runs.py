"""Real runs by several processes: what each shall do comes in, folders and what they read go out.

    runs(folder, {2: [told("ddp"), told("more", "distributed=zero1", begin="ddp")], 1: [told("one")]})

Each run trains in a folder of its own, or goes on in a copy of another's (`begin`): one start for many runs.
Run as a script this file imports the library once and forks the processes of all starts from there, one start
after another, which saves most of their time.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from together import environment, free_port

from scratchlm.checkpoint import load_checkpoint
from scratchlm.train.metrics import JsonLines

TINY = (
    "corpus.num_train=40",
    "corpus.num_valid=4",
    "tokenizer=chars",
    "model.name=watched",
    "model.context_length=16",
    "model.d_model=18",
    "model.d_ff=22",
    "model.num_layers=2",
    "model.num_heads=3",
    "model.dropout=0.1",
    "optimizer.lr=5e-3",
    "train.grad_clip=0.3",
    "train.steps=6",
    "train.batch_tokens=192",
    "train.micro_batch_tokens=16",
    "train.eval_every=3",
    "train.sample_every=4",
    "train.first_sample=1",
    "train.save_every=3",
    "train.keep_checkpoints=9",
    "train.log_every=1",
    "train.compile=false",
    "train.precision=float32",
    "train.device=cpu",
    "sampling.max_new_tokens=4",
)
"""12 rows a step, for 1, 2, 3 and 4 processes; odd sizes, so that rows do not divide evenly."""

ROWS = 12
"""Of a step."""

ROUNDING = 2e-6
"""Gradients are added in another order; measured over 6 steps: 6e-7 of the loss."""
MUON_ROUNDING = 1e-5
"""Newton-Schulz makes small differences larger: measured 1e-6."""

RICH = (
    "model.tied=true",
    "optimizer=muon",
    "optimizer.precision=float32",
    "train.ema_decay=0.9",
    "train.statistics_every=2",
    "train.gradient_checkpointing=true",
    "train.grad_clip=0.1",
)
"""What the other settings leave out."""

SECONDS = 300
"""Of all starts together; on an idle machine they take about twenty."""


def told(name, *settings, begin=None, **more):
    """One run for the script.

    Args:
        name: Its folder.
        *settings: Beside TINY.
        begin: The run that it goes on with, in a copy.
        **more: harm={"what": "SIGTERM" or "nan", "row": the row of this process at which it happens} or
            {"what": "spike", "after": rows} or {"what": "end"}, what its own samples' logits say; rank=the
            process that it happens to, all of them by default.
    """
    # the last value, at the first place: another model.name forgets what was said of the model before it
    words = {word.partition("=")[0]: word for word in (*TINY, *settings)}
    return {"name": name, "begin": begin, "settings": list(words.values()), **more}


def runs(folder, wanted, seconds=SECONDS):
    """Let processes run what they are told; return number of processes -> what each of them read.

    Args:
        folder: For all runs.
        wanted: Number of processes -> their runs; one start after another.
        seconds: How long all may take.
    """
    command = [sys.executable, __file__, str(folder), json.dumps(list(wanted.items()))]
    # of one thread; a compiler's own processes would not be those of a fork
    own = environment(0, 1, 1) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    ended = subprocess.run(command, env=own, capture_output=True, text=True, timeout=seconds, check=False)
    assert ended.returncode == 0, ended.stderr
    return {
        size: [
            json.loads((folder / f"{size}-{rank}.json").read_text(encoding="utf-8")) for rank in range(size)
        ]
        for size in wanted
    }


def sample_order(found, name):
    """The rows that all processes read, in the order of one process: step by step, rank by rank."""
    parts = [rank[name] for rank in found]
    share = ROWS // len(parts)
    return [
        row
        for step in range(len(parts[0]) // share)
        for part in parts
        for row in part[step * share : (step + 1) * share]
    ]


def rows_of(path, kind):
    """The rows of metrics.jsonl of one kind."""
    return [row for row in JsonLines(Path(path) / "metrics.jsonl").rows() if row["kind"] == kind]


def losses(path, kind="train"):
    """The losses that a run wrote down."""
    return [row["loss"] for row in rows_of(path, kind)]


def stop(step, world_size):
    """SIGTERM reaches the last process alone, in the middle of a step; counted from where the run begins."""
    return {"harm": {"what": "SIGTERM", "row": (step - 1) * ROWS // world_size + 1}, "rank": world_size - 1}


def saved(folder, name, step):
    """A run's checkpoint."""
    return load_checkpoint(folder / name / "checkpoints" / f"step-{step:07d}")


def first_weights(folder, name, world_size=1):
    """The weights that a run began with, the rows of all processes behind each other."""
    parts = [torch.load(folder / f"{name}-first-{rank}.pt") for rank in range(world_size)]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def close(one, other, **tolerance):
    """See that two checkpoints hold the same tensors and counts."""
    for group in ("model", "optimizer", "ema"):
        assert one.tensors.get(group, {}).keys() == other.tensors.get(group, {}).keys()
        for name, tensor in one.tensors.get(group, {}).items():
            torch.testing.assert_close(
                other.tensors[group][name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance
            )
    assert one.state["optimizer"] == other.state["optimizer"]
    assert one.state["parameters"] == other.state["parameters"]


def _start(folder, size, several):
    """Fork the processes of one start and wait for them."""
    port, children = free_port(), []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ.update(environment(rank, size, port))
                order = _work(folder, several)
                (folder / f"{size}-{rank}.json").write_text(json.dumps(order), encoding="utf-8")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"{size} processes ended with {codes}")


def _work(folder, several):
    """What one process does."""
    from scratchlm.distributed import Processes
    from scratchlm.runtime import set_threads
    from scratchlm.train import recipes
    from scratchlm.train.run import run

    seen, harm = [], {}
    _watch(seen, harm)
    processes = Processes.from_environment(timeout_seconds=SECONDS)  # a compiler lets others wait
    set_threads(1)
    orders = {}
    for one in several:
        seen.clear()
        harm.clear()
        if one.get("rank", processes.rank) == processes.rank:
            harm.update(one.get("harm", {}), rows=ROWS // processes.world_size)
        path = folder / one["name"]
        with processes.first_alone():
            if processes.first and one["begin"]:
                shutil.copytree(folder / one["begin"], path)
        config = recipes.read("demo", one["settings"])
        run(config, path, resume=bool(one["begin"]), allow_changes=True, processes=processes)
        orders[one["name"]] = list(seen)
    processes.barrier()
    return orders


def _watch(seen, harm):
    """A model that notes what it reads and does harm; a session that saves again what it has read."""
    from scratchlm.model import MODELS
    from scratchlm.model.transformer import TransformerLM
    from scratchlm.train import session as sessions
    from scratchlm.train.session import Session

    @MODELS.register("watched")
    class Watched(TransformerLM):
        def hidden(self, ids, **extra):
            hidden = super().hidden(ids, **extra)
            if not self.training:
                return hidden
            seen.extend(hashlib.md5(row.numpy().tobytes()).hexdigest() for row in ids)
            if harm.get("what") == "SIGTERM" and len(seen) == harm["row"]:
                os.kill(os.getpid(), signal.SIGTERM)
            elif harm.get("what") == "nan" and len(seen) == harm["row"]:
                hidden.register_hook(lambda gradient: gradient * torch.nan)
            elif harm.get("what") == "spike" and 0 < len(seen) - harm["after"] <= harm["rows"]:
                return hidden * 30
            return hidden

        def head(self, hidden):
            logits = super().head(hidden)
            if harm.get("what") == "end" and len(hidden) == hidden.dim() - 1 == 1:  # of a sample
                logits[:, 0] = 99.0  # the end of a text
            return logits

    @MODELS.register("frozen")
    class Frozen(TransformerLM):
        """Embeddings, all of the first block and a part of the last are not trained."""

        def __init__(self, config):
            super().__init__(config)
            for part in (self.token_embeddings, self.layers[0], self.layers[-1].attn):
                part.requires_grad_(False)

    resume, begin = sessions.restore, Session.__init__

    def restore_and_save(session, changes):
        resume(session, changes)
        session.last_saved = -1
        session._save(wait=True)

    def note_first_weights(session, folder, config, *rest):
        begin(session, folder, config, *rest)
        kept = {
            name: rows.detach().clone() for name, rows in session.trainer.engine.named_parameters().items()
        }
        torch.save(kept, folder.path.with_name(f"{folder.path.name}-first-{session.processes.rank}.pt"))

    sessions.restore, Session.__init__ = restore_and_save, note_first_weights


if __name__ == "__main__":
    import torch._dynamo

    import scratchlm.train.run  # noqa: F401
    from scratchlm.distributed.engine import ENGINES
    from scratchlm.model import MODELS
    from scratchlm.optim import OPTIMIZERS

    for family in (ENGINES, MODELS, OPTIMIZERS):
        family.names()
    for number, told_runs in json.loads(sys.argv[2]):
        _start(Path(sys.argv[1]), number, told_runs)
