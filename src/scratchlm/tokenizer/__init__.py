"""Text -> token ids -> text.

Reading order; in each group the first file explains the others.

  What every tokenizer offers
    base             text -> ids: encode and its kin, batches, streams, the saved file
    vocabulary       ids -> bytes and text: decode and its kin
    special_tokens   which special tokens a text may hold, and where they stand
    streaming        text that arrives in chunks; ids that leave one at a time
    offsets          where each token stands in the text
    chat             a conversation -> ids, and a mask of what the assistant says; its Jinja template
    normalization    Unicode's composed form, for tokenizers that want it

  Text -> pieces that no token may cross
    pretokenize      the split patterns, as expressions; which compiled scanner does the same fast
    sources          bytes from memory or from a file, read at any position
    windows          text of any size in stretches of 256 KB; safe cuts for windows and threads
    scan_regex       a pattern without a compiled scanner, and the oracle of those that have one

  Byte-pair encoding
    bpe_reference    all of it in plain Python: read first, the oracle of everything below
    bpe_train        texts -> BPETokenizer: count, merge, number
    piece_counts     files -> each distinct piece once with its count, by several threads
    merging          counted pieces -> the merges in order
    train_profile    seconds and memory of each phase of a training
    bpe              BPETokenizer: vocabulary, merges, special tokens
    bpe_encode       pieces -> ids, each distinct piece merged once
    piece_cache      the ids of pieces that a thread has met

  Variants
    bpe_extend       more merges for a trained tokenizer, or fewer
    merge_replay     merges that are given, applied to words before new ones are learnt
    superbpe         later merges may join words
    scaffold_reference, scaffold_merges, scaffold    no ids for tokens that only serve to make longer ones
    bpe_dropout      merges left out at random
    words            WordTokenizer: one id per word
    chars            CharTokenizer: one id per character

  Many texts
    batches          ids one after the other with offsets, rows of equal length, threads in order
    text_files       a file -> the ids of its documents in memory (to shards on disk: data.encode_file)

Folders: `compiled` has the loops that must be fast, `formats` the files of other programs.
Elsewhere: `TOKENIZERS.build("bpe", vocab_size=4096).train(texts)`, `load_tokenizer(path)`.
"""

from pathlib import Path
from typing import Any

from scratchlm.registry import Family
from scratchlm.tokenizer.base import END_OF_TEXT, Tokenizer

__all__ = ["END_OF_TEXT", "FILE_NAME", "TOKENIZERS", "Tokenizer", "load_tokenizer"]

TOKENIZERS: Family[Any] = Family("tokenizer", package="scratchlm.tokenizer", variable="TOKENIZERS")

FILE_NAME = "tokenizer.scratchlm.json"
"""Name of a saved tokenizer inside a run folder or a shard folder."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer that `Tokenizer.save` wrote.

    Args:
        path: The JSON file, or a folder that holds one under the name `FILE_NAME`.

    Raises:
        ValueError: The file is missing, damaged, or of an unknown type; the message names it.
    """
    from scratchlm.tokenizer.formats import read_saved

    path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    content = read_saved(path)
    try:
        trainer = TOKENIZERS.get(content["type"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return trainer.tokenizer.load(path)
