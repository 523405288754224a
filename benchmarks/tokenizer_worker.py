"""One measurement in a fresh process: `tokenizer_worker.py '{"task": "train", ...}'` -> a line of JSON.

A fresh process makes peak memory and the first call honest. Compiled code comes from the disk cache, files
from the page cache: both are warmed before by the caller.
"""

import dataclasses
import hashlib
import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Seconds, and what the function returned."""
    began = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - began, result


def peak_megabytes() -> float:
    """The most memory that this process held; `ru_maxrss` would count its parent's before it began."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def without_extensions() -> None:
    """Keep Numba from importing awkward, which is installed only because gigatoken needs it (0.3 s)."""
    import numba.core.entrypoints

    numba.core.entrypoints._already_initialized = True


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job: the first call, then `repeats` more."""
    import numpy as np
    import tokenizer_tools as tools

    name, threads, path = job["tool"], job.get("threads", 1), Path(job["path"])
    if name == "scratchlm":
        without_extensions()
    imported, _ = timed(importlib.import_module, tools.MODULES.get(name, name))
    if job["task"] == "train":
        check = str
        call = lambda: tools.TRAINERS[name](path, job["vocab_size"], threads)  # noqa: E731
    elif job["task"] == "profile":
        from scratchlm.tokenizer.bpe_train import train_bpe_on_file
        from scratchlm.tokenizer.train_profile import TrainingProfile

        profile = TrainingProfile()
        train_bpe_on_file(path, vocab_size=job["vocab_size"], num_threads=threads, profile=profile)
        return {"profile": dataclasses.asdict(profile), "peak_megabytes": peak_megabytes()}
    elif job["task"] == "encode":
        encode = tools.ENCODERS[name](Path(job["ranks"]), threads)
        encode(Path(job["warm_up"]))  # libraries and compiled code, not caches of this text
        check = lambda ids: hashlib.sha256(ids.astype(np.uint32).tobytes()).hexdigest()[:16]  # noqa: E731
        call = lambda: encode(path)  # noqa: E731
    else:
        decode, ids = tools.DECODERS[name](Path(job["ranks"])), np.load(path)
        given = ids if job["form"] == "numpy" else ids.tolist()
        decode(given[:1000])
        check = lambda text: hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]  # noqa: E731
        call = lambda: decode(given)  # noqa: E731
    first, result = timed(call)
    checked = check(result)
    del result
    peak = peak_megabytes()
    repeated = [timed(call)[0] for _ in range(job.get("repeats", 0))]
    return {
        "import": imported,
        "first": first,
        "repeated": repeated,
        "peak_megabytes": peak,
        "check": checked,
    }


if __name__ == "__main__":
    result = measure(json.loads(sys.argv[1]))
    print(json.dumps(result | {"process": time.perf_counter() - BEGAN}))
