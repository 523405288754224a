"""Several processes that train one model together."""

from scratchlm.distributed.process import Processes

__all__ = ["Processes"]
