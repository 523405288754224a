"""A prompt in, text out, piece by piece: sampling.py chooses tokens, engine.py runs the model.

The engine computes the prompt once, keeps its keys and values, and pays one step for each further token.
"""

from scratchlm.generate.engine import generate_text, stream
from scratchlm.generate.sampling import SamplingConfig

__all__ = ["SamplingConfig", "generate_text", "stream"]
