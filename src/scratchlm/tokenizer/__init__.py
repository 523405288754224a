"""Text -> token ids -> text.

Reading order:

    pretokenize     the split patterns: text -> pieces that no token may cross
    bpe_reference   byte-pair encoding in plain Python: read first, the oracle of everything below
    bpe_train       the same trainer, fast: distinct pieces counted once, postings, a lazy heap
    bpe_encode      the same encoder, fast: a cache of pieces, a heap for long ones
    bpe_numba       the compiled loops of counting, splitting and encoding; bpe_numba_merges those of training
    bpe             BPETokenizer: vocabulary, merges, special tokens
    chars           CharTokenizer: one id per character
    streaming       text that arrives in chunks; ids that leave one at a time
    formats         GPT-2's vocab.json + merges.txt, our one-file JSON
    base            what every tokenizer offers

Elsewhere: `TOKENIZERS.build("bpe", vocab_size=4096).train(texts)`, `load_tokenizer(path)`.
"""

from pathlib import Path
from typing import Any

from scratchlm.registry import Family
from scratchlm.tokenizer.base import END_OF_TEXT, Tokenizer

__all__ = ["END_OF_TEXT", "FILE_NAME", "TOKENIZERS", "Tokenizer", "load_tokenizer"]

TOKENIZERS: Family[Any] = Family("tokenizer", package="scratchlm.tokenizer")

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
