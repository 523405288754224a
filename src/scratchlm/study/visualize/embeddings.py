r"""The token table of each checkpoint comes in; a map of the tokens and their nearest neighbours come out.

    X = U S V^T            X: the shown tokens' vectors, minus their mean
    map = X V[:, :2]       the plane on which the cloud is widest: principal component analysis
    share = S_k^2 / sum S^2          how much of the cloud's spread lies along each axis
    nearest to a: largest  a b / (|a| |b|)      cosine: angles, so that frequent (long) vectors do not win

A table of hundreds of dimensions loses most of its spread on a plane; neighbours are found in all of them.

Source: Pearson 1901; neighbours of word vectors as in Mikolov et al. 2013, https://arxiv.org/abs/1301.3781.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.checkpoint import CheckpointError, open_checkpoint
from scratchlm.checkpoint.retention import checkpoint_folders
from scratchlm.data.shards import TokenDataset
from scratchlm.study.visualize.passes import token_text
from scratchlm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

TABLE = "token_embeddings.weight"
SHOWN_TOKENS = 300
"""Dots of the map: the most frequent tokens; rare ones have hardly moved since their random start."""
NUM_NEIGHBOURS = 5
MAX_CHECKPOINTS = 6
"""Columns of neighbours; of more checkpoints the first, the last and some between."""
COUNTED_TOKENS = 2_000_000
"""Tokens of a split that are counted to find the frequent ones."""


class Place(NamedTuple):
    """One token on the map; x and y between 0 and 1, y downwards as in a drawing."""

    text: str
    count: int
    x: float
    y: float


class Map(NamedTuple):
    """Tokens on the plane of their two widest directions."""

    places: list[Place]
    shares: tuple[float, float]


class Neighbours(NamedTuple):
    """One token's nearest ones at each checkpoint."""

    token: str
    by_step: list[list[tuple[str, float]]]


def token_counts(dataset: TokenDataset, vocab_size: int) -> Int[np.ndarray, " vocab"]:
    """How often each token comes in the first COUNTED_TOKENS of a split."""
    return np.bincount(dataset.read(0, min(dataset.num_tokens, COUNTED_TOKENS)), minlength=vocab_size)


def principal_plane(
    vectors: Float[Tensor, "tokens d_model"],
) -> tuple[Float[Tensor, "tokens two"], tuple[float, float]]:
    """Project vectors onto the two directions of largest spread; an axis that is not there is 0.

    Returns:
        The coordinates, and each axis's share of the whole spread.
    """
    centred = vectors.double() - vectors.double().mean(dim=0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    # a direction is as good as its opposite: the largest component is made positive, so that runs agree
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    plane = torch.zeros(len(vectors), 2, dtype=torch.float64)
    used = (directions * signs)[:2]
    plane[:, : len(used)] = centred @ used.T
    spread = sizes.square() / sizes.square().sum().clamp(min=1e-30)
    shares = [*spread[:2].tolist(), 0.0, 0.0]
    return plane, (shares[0], shares[1])


def embedding_map(
    table: Float[Tensor, "vocab d_model"], counts: Int[np.ndarray, " vocab"], tokenizer: Tokenizer
) -> Map:
    """Place the most frequent tokens on a plane."""
    order = np.argsort(-counts, kind="stable")[:SHOWN_TOKENS]
    ids = [int(id) for id in order if counts[id] > 0]
    if len(ids) < 3:  # two points always lie on a line
        return Map([], (0.0, 0.0))
    vectors = table[ids]
    plane, shares = principal_plane(torch.nan_to_num(vectors, posinf=0.0, neginf=0.0))
    low, high = plane.min(dim=0).values, plane.max(dim=0).values
    scaled = ((plane - low) / (high - low).clamp(min=1e-12)).tolist()
    return Map(
        [
            Place(token_text(tokenizer, id), int(counts[id]), x, 1 - y)
            for id, (x, y) in zip(ids, scaled, strict=True)
        ],
        shares,
    )


def nearest(table: Float[Tensor, "vocab d_model"], token_id: int, number: int) -> list[tuple[int, float]]:
    """The ids nearest to a token by cosine, itself left out, and the cosines."""
    unit = table.double() / table.double().norm(dim=1, keepdim=True).clamp(min=1e-12)
    cosines = torch.nan_to_num(unit @ unit[token_id], nan=-1.0)
    cosines[token_id] = -torch.inf
    best = cosines.topk(min(number, len(table) - 1))
    return [(int(id), float(value)) for value, id in zip(best.values, best.indices, strict=True)]


def neighbours(
    tables: Sequence[Float[Tensor, "vocab d_model"]], tokenizer: Tokenizer, token_ids: Sequence[int]
) -> list[Neighbours]:
    """The nearest neighbours of some tokens in each table."""
    return [
        Neighbours(
            token_text(tokenizer, id),
            [
                [(token_text(tokenizer, other), cosine) for other, cosine in nearest(t, id, NUM_NEIGHBOURS)]
                for t in tables
            ],
        )
        for id in token_ids
    ]


def read_tables(checkpoints: Path) -> list[tuple[int, Float[Tensor, "vocab d_model"]]]:
    """Read nothing but the token table of the checkpoints in a folder: (step, table), the first first.

    A checkpoint that averages its weights gives the averages, as validation does. A damaged one is named in a
    warning and passed over.
    """
    folders = checkpoint_folders(checkpoints)
    if len(folders) > MAX_CHECKPOINTS:
        kept = np.linspace(0, len(folders) - 1, MAX_CHECKPOINTS).round().astype(int)
        folders = [folders[index] for index in kept]
    found = []
    for folder in folders:
        try:
            with open_checkpoint(folder) as reader:
                averaged = "ema" in reader.groups and TABLE in reader.names("ema")
                found.append((reader.step, reader.read("ema" if averaged else "model", TABLE).float()))
        except CheckpointError as error:
            log.warning("%s Its neighbours are left out.", error)
    return found


def choose_tokens(
    counts: Int[np.ndarray, " vocab"], tokenizer: Tokenizer, words: Sequence[str], number: int = 6
) -> list[int]:
    """The tokens whose neighbours are shown: those of the given words, or frequent ones that are words.

    Args:
        counts: How often each token comes.
        tokenizer: The run's own.
        words: Words, with or without a blank before them; each must be a single token.
        number: How many where no words are given.

    Raises:
        ValueError: A word is no single token.
    """
    if not words:
        order = np.argsort(-counts, kind="stable")
        texts = {int(id): token_text(tokenizer, int(id)).strip() for id in order if counts[id] > 0}
        letters = [id for id, text in texts.items() if text.isalpha()]
        # of short ones ("the", "a", halves of words) the neighbours say little
        return sorted(letters, key=lambda id: len(texts[id]) <= 3)[:number]
    chosen = []
    for word in words:
        single = [ids for form in (word, f" {word}") if len(ids := tokenizer.encode_ordinary(form)) == 1]
        if not single:
            parts = ", ".join(repr(token_text(tokenizer, id)) for id in tokenizer.encode_ordinary(word))
            raise ValueError(
                f"--word {word!r}: is no single token of this tokenizer, which cuts it into "
                f"{parts or 'nothing'}; give a word that it keeps whole."
            )
        chosen.append(max(single, key=lambda ids: counts[ids[0]])[0])
    return list(dict.fromkeys(chosen))
