"""A plug-in: an optimizer that takes its time, and one whose process is killed at its third step."""

import os
import signal
import time

from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.sgd import SGD


@OPTIMIZERS.register("patient")
class Patient(SGD):
    """SGD whose step takes long enough to be interrupted."""

    def __init__(self, params, *, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        time.sleep(0.02)
        return super().step(closure)


@OPTIMIZERS.register("killed")
class Killed(SGD):
    """SGD that kills its process."""

    def __init__(self, params, *, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        if self.num_steps == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(closure)
