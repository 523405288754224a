"""Prompts in, text out, piece by piece: sampling.py chooses tokens, engine.py runs many texts at once.

    request.py   what is asked and answered         sequence.py   one text under way
    runner.py    the model, slot by slot            text.py       stop strings across tokens
    runner_fused.py   a transformer on a CPU, all slots in one pass
    speculate.py      guesses that one pass confirms

A prompt is computed once, its keys and values are kept, and each further token costs one step.
"""

from scratchlm.generate.engine import Engine, generate_text, stream
from scratchlm.generate.request import Request
from scratchlm.generate.sampling import SamplingConfig

__all__ = ["Engine", "Request", "SamplingConfig", "generate_text", "stream"]
