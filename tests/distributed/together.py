"""Several real processes over gloo: a script for all of them goes in, what each printed as JSON comes out."""

import json
import os
import socket
import subprocess
import sys

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(rank, world_size, port):
    """What torchrun would set, and one thread each."""
    own = {name: value for name, value in os.environ.items() if name not in (*TORCHRUN, "GLOO_SOCKET_IFNAME")}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    return own | place | {name: str(number) for name, number in numbers.items()}


def start(code, *words, world_size=2):
    """Start all processes."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env=environment(rank, world_size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def end(children):
    """End those that still run."""
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


LEAVE = """
import os, sys
sys.stdout.flush()
os._exit(0)
"""
"""Once in some hundred runs a thread of gloo's aborts the interpreter while it is being taken down."""


def run(code, *words, world_size=2, seconds=120):
    """Run all to their end; return the last line of each, read as JSON."""
    children = start(code + LEAVE, *words, world_size=world_size)
    try:
        outputs = [child.communicate(timeout=seconds) for child in children]
        assert [child.returncode for child in children] == [0] * world_size, outputs
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    finally:
        end(children)
