"""Token ids in, logits out: the models and their parts. Read transformer.py first, then block and attention.

linear, norm, position, feedforward, attention: the parts. block and transformer: the whole. bigram: the
baseline. config: the settings; sizes: named ones; accounting: parameters, FLOPs and memory by formula.
"""

from scratchlm.model.config import MODELS, ModelConfig, ModelSettings

__all__ = ["MODELS", "ModelConfig", "ModelSettings"]
