"""A model of ours comes in; EleutherAI's lm-eval can ask it its hundreds of tasks.

    from lm_eval import simple_evaluate
    simple_evaluate(model=HarnessLM(model, tokenizer, device=device), tasks=["lambada_openai"])

    loglikelihood           scoring.py          our own tasks' function: the same numbers, bit for bit
    loglikelihood_rolling   scoring.py          each text behind the end-of-text token, each token once
    generate_until          writing.py          many at once, with the engine of `scratchlm generate`

lm-eval comes with the extra "harness" (pip install 'scratchlm[harness]'); nothing else imports this file.

Source: the interface, https://github.com/EleutherAI/lm-evaluation-harness, docs/model_guide.md.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from scratchlm.config import validate
from scratchlm.evaluate.scoring import Pair, encode_pair, score
from scratchlm.evaluate.writing import write_all
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256
"""Of a written answer where the task does not say; lm-eval's own number."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks say it, the first one first."""
SETTINGS = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
"""Names that mean the same here and there."""


class HarnessLM(TemplateLM):
    """A model as lm-eval wants it."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        """Take a model.

        Args:
            model: Token ids -> logits, with `config`, `hidden`, `head` and `make_cache`.
            tokenizer: The one that the model was trained with.
            device: Where the model's parameters are.
            autocast: Called around each forward pass of `loglikelihood` to lower its precision, or None.
        """
        super().__init__()
        self.model, self.scratch_tokenizer = model, tokenizer
        self.where, self.autocast = device, autocast

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text, and begins one."""
        return self.scratch_tokenizer.end_of_text_id

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self.model.config.context_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a written answer where the task does not say."""
        return MAX_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """What tells this tokenizer from others, for lm-eval's cache."""
        return self.scratch_tokenizer.fingerprint

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **settings: object
    ) -> list[int]:
        """Return the ids of a text, behind the end-of-text token unless `add_special_tokens` is False."""
        first = [] if add_special_tokens is False else [self.eot_token_id]
        return [*first, *self.scratch_tokenizer.encode_ordinary(string)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return ln p of whole texts; an empty one has ln 1."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        scores = iter(self._score([Pair([self.eot_token_id], ids) for ids in texts if ids]))
        return [next(scores)[0] if ids else 0.0 for ids in texts]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Write behind each context until one of its stop texts.

        Raises:
            ValueError: A task asks for a way of choosing tokens that there is not.
        """
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        configs = [sampling(request.args[1]) for request in requests]
        return [found.text for found in write_all(self.model, self.scratch_tokenizer, prompts, configs)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        pair = encode_pair(self.scratch_tokenizer, context, continuation)
        return list(pair.context), list(pair.continuation)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **settings: object
    ) -> list[tuple[float, bool]]:
        return self._score([Pair(context, continuation) for _, context, continuation in requests])

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        found = score(
            self.model, pairs, context_length=self.max_length, device=self.where, autocast=self.autocast
        )
        return [(one.logprob, one.is_greedy) for one in found]


def sampling(settings: Mapping[str, Any]) -> SamplingConfig:
    r"""Return what lm-eval calls generation_kwargs in our words.

    Example: {"until": ["\n"], "do_sample": False} -> temperature 0, stop ("\n",), 256 tokens.

    Raises:
        ValueError: There is no such setting here, or a value is outside its range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    until = given.pop("until", [])
    limits = [given.pop(name) for name in LIMITS if name in given]
    temperature = given.pop("temperature", 0.0) if given.pop("do_sample", True) else 0.0
    unknown = sorted(given.keys() - SETTINGS)
    if unknown:
        known = ", ".join(["until", "do_sample", *LIMITS, *sorted(SETTINGS)])
        raise ValueError(f"generation_kwargs.{unknown[0]}: not known; {known} are.")
    stop = (until,) if isinstance(until, str) else tuple(until)
    own = {"temperature": temperature, "stop": stop, "max_new_tokens": (limits or [MAX_NEW_TOKENS])[0]}
    return validate(SamplingConfig, {**given, **own})
