"""CS336, assignment 5, its optional part on instructions and preferences: the same in 2025 and 2026.

    get_packed_sft_dataset, run_iterate_batches       here
    run_parse_mmlu_response, run_parse_gsm8k_...      evaluate/answers.py
    run_compute_per_instance_dpo_loss                 posttrain/preference_losses.py

The course writes instructions in the words of Alpaca and packs them one behind the other, cut wherever a row
is full; this library's own way (posttrain/packing.py) keeps conversations whole and hides them from each
other. Import these functions from `alignment_2025` or `alignment_2026`.

Source of the words: Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca, section "Data Release".
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader, Dataset

from scratchlm.evaluate.answers import parse_gsm8k_response, parse_mmlu_response
from scratchlm.loss import token_losses
from scratchlm.posttrain.preference_losses import DPO, Pairs

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{prompt}\n\n### Response:\n{response}"
)
"""How the course writes an instruction and its response."""


class PackedInstructions(Dataset[dict[str, Tensor]]):
    """All documents in one line of tokens, cut into rows: "input_ids", and "labels" one token further on."""

    def __init__(self, documents: Iterable[list[int]], seq_length: int) -> None:
        """Lay the documents out.

        Args:
            documents: Token ids, with the tokens that open and end a document.
            seq_length: Tokens of a row, at least 1; what is left at the end is no row.

        Raises:
            ValueError: seq_length is below 1.
        """
        if seq_length < 1:
            raise ValueError(f"seq_length={seq_length}: must be at least 1.")
        self.ids = torch.tensor([token for document in documents for token in document], dtype=torch.long)
        self.seq_length = seq_length

    def __len__(self) -> int:
        """The number of rows whose last token has a label, too."""
        return max(0, len(self.ids) - 1) // self.seq_length

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Return a row; after the last one an IndexError ends a loop."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row}: there are {len(self)}.")
        start = row % len(self) * self.seq_length
        piece = self.ids[start : start + self.seq_length + 1]
        return {"input_ids": piece[:-1], "labels": piece[1:]}


def get_packed_sft_dataset(
    tokenizer: Any, dataset_path: str | os.PathLike[str], seq_length: int, shuffle: bool
) -> Dataset[dict[str, Tensor]]:
    """Return the examples of a JSONL file, packed; shuffled ones in an order of torch's global generator.

    Raises:
        ValueError: A line is no example, or the tokenizer has no token that ends a text.
    """
    end = _end_of_text(tokenizer)
    examples = list(_examples(Path(dataset_path)))
    order = torch.randperm(len(examples)).tolist() if shuffle else range(len(examples))
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    texts = (ALPACA.format(**examples[number]) for number in order)
    documents = ([*begin, *tokenizer.encode(text, add_special_tokens=False), end] for text in texts)
    return PackedInstructions(documents, seq_length)


def run_iterate_batches(
    dataset: Dataset[dict[str, Tensor]], batch_size: int, shuffle: bool
) -> DataLoader[dict[str, Tensor]]:
    """Return an iterable over one epoch; its last batch may be smaller."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle)


def run_parse_mmlu_response(mmlu_example: dict[str, Any], model_output: str) -> str | None:
    """Return the letter of the choice that a text names, None where it names none or is undecided."""
    return parse_mmlu_response(mmlu_example, model_output)


def run_parse_gsm8k_response(model_output: str) -> str | None:
    """Return the last number of a text, None if there is no number."""
    return parse_gsm8k_response(model_output)


def run_compute_per_instance_dpo_loss(
    lm: Module,
    lm_ref: Module,
    tokenizer: Any,
    beta: float,
    prompt: str,
    response_chosen: str,
    response_rejected: str,
) -> Float[Tensor, ""]:
    """Return the DPO loss of one pair: Alpaca's words, then the token that ends a text.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    end = _end_of_text(tokenizer)
    rows = [
        [*tokenizer.encode(ALPACA.format(prompt=prompt, response=response), add_special_tokens=False), end]
        for response in (response_chosen, response_rejected)
    ]
    policy = [_log_prob(lm, row) for row in rows]
    with torch.no_grad():
        reference = [_log_prob(lm_ref, row).to(policy[0].device) for row in rows]
    return DPO(beta=beta)(Pairs(*(number[None] for number in (*policy, *reference))))[0]


def response_logits(model: Module, input_ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
    """Return the logits of a model of transformers, or of one of ours."""
    found = model(input_ids)
    return getattr(found, "logits", found)


def _end_of_text(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("tokenizer: has no eos_token; a model would never learn to stop. Set one.")
    return tokenizer.eos_token_id


def _log_prob(model: Module, ids: list[int]) -> Float[Tensor, ""]:
    """The log-probability of all ids after the first: what both texts begin with cancels out in a pair."""
    row = torch.tensor([ids], device=next(model.parameters()).device)
    return -token_losses(response_logits(model, row[:, :-1]), row[:, 1:]).sum()


def _examples(path: Path) -> Iterator[dict[str, str]]:
    """Each line's prompt and response."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                example = json.loads(line)
                yield {name: str(example[name]) for name in ("prompt", "response")}
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path}, line {number}: must be {{"prompt": "...", "response": "..."}} in JSON.'
                ) from error
