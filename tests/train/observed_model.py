"""A plug-in: a transformer that writes down each training row it reads, and does harm when told to.

OBSERVED=FOLDER     rank-0.jsonl: {"rows": [a hash for each row], "weights": a hash of all parameters}
HARM="SIGTERM@6"    at the forward pass number 6 of training (from 0) in this process:
                    SIGTERM, SIGINT, SIGKILL      send it to oneself
                    nan-loss, nan-gradient        what becomes of the loss, or of the gradient alone
                    spike                         logits 30 times as large
                    lost                          SIGKILL, unless the file OBSERVED/lost is there already
                    wait                          make the file OBSERVED/waiting and wait for OBSERVED/go
HARM="nan-gradient@6/1 SIGINT@9"   only on rank 1; and another one later
HARM="lost@6/1 then-SIGTERM@2"     the second one only when a process was lost before
"""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import torch

from scratchlm.model import MODELS
from scratchlm.model.transformer import TransformerLM


@MODELS.register("observed")
class ObservedLM(TransformerLM):
    """A transformer under observation."""

    def __init__(self, config):
        super().__init__(config)
        self.folder = Path(os.environ["OBSERVED"])
        self.rank = os.environ.get("RANK", "0")
        self.num_forwards = 0

    def hidden(self, ids, **extra):
        """Observe, then do as any transformer; the head comes after it, whole or in chunks."""
        if not self.training:
            return super().hidden(ids, **extra)
        harm = self.harm()
        self.num_forwards += 1
        weights = b"".join(parameter.detach().numpy().tobytes() for parameter in self.parameters())
        seen = {
            "rows": [hashlib.md5(row.numpy().tobytes()).hexdigest() for row in ids],
            "weights": hashlib.md5(weights).hexdigest(),
        }
        with (self.folder / f"rank-{self.rank}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(seen) + "\n")
        if harm.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, harm))
        elif harm == "lost" and not (self.folder / "lost").exists():
            (self.folder / "lost").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif harm == "wait":
            (self.folder / "waiting").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.01)
        hidden = super().hidden(ids, **extra)
        if harm == "nan-loss":
            return hidden * torch.nan
        if harm == "nan-gradient":
            hidden.register_hook(lambda gradient: gradient * torch.nan)
        return hidden * 30 if harm == "spike" else hidden

    def harm(self):
        """What shall happen in this forward pass."""
        for word in os.environ["HARM"].split():
            what, _, when = word.partition("@")
            number, _, rank = when.partition("/")
            if what.startswith("then-") and not (self.folder / "lost").exists():
                continue
            if int(number) == self.num_forwards and rank in ("", self.rank):
                return what.removeprefix("then-")
        return ""
