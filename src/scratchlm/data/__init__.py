"""Ids and batches: text comes in from a corpus, token ids lie in shards, batches of rows go out.

    corpora    what text there is: the family `CORPORA` (stories, your own files, downloads)
    prepare    documents -> shards of token ids, by several threads, resumable
    encode_file    text files -> the same, without documents in between: as fast as the tokenizer
    shards     ids on disk: .npy files beside one manifest.json
    loader     shards -> rows for training: the family `LOADERS`
    packed     the loader that puts whole documents together
    packing    shards -> rows for evaluation, each token predicted once

This file defines the two families and imports none of their parts: they are found on the first look-up.
"""

from typing import TYPE_CHECKING

from scratchlm.registry import Family

if TYPE_CHECKING:
    from scratchlm.data.corpora import Corpus
    from scratchlm.data.loader import Loader

CORPORA: "Family[Corpus]" = Family("corpus", package="scratchlm.data", variable="CORPORA")
LOADERS: "Family[Loader]" = Family("batches", package="scratchlm.data", variable="LOADERS")
