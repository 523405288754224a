"""One adapter for each tokenizer library: train on a file, encode a file, decode ids; all do the same work.

A trainer learns `vocab_size` entries with GPT-2's split pattern from a file whose documents end with
<|endoftext|>. An encoder turns such a file, read from disk, into ids, its own fastest way. A peer that is not
installed has no adapter.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SEPARATOR = "<|endoftext|>"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def installed(names: Sequence[str]) -> list[str]:
    """Those of the libraries that can be imported."""
    return [name for name in names if importlib.util.find_spec(name) is not None]


def documents(path: Path) -> list[str]:
    """The documents of a file, in memory, as most libraries want them."""
    return [text for text in path.read_text(encoding="utf-8").split(SEPARATOR) if text]


def versions() -> dict[str, str]:
    """Versions of the installed libraries."""
    return {name: importlib.metadata.version(name) for name in installed([*TRAINERS, "tiktoken", "numba"])}


# training: (path, vocab_size, threads) -> number of merges


def train_scratchlm(path: Path, vocab_size: int, threads: int) -> int:
    from scratchlm.tokenizer.bpe_train import train_bpe_on_file

    return len(train_bpe_on_file(path, vocab_size=vocab_size, num_threads=threads).merges)


def train_gigatoken(path: Path, vocab_size: int, threads: int) -> int:
    import gigatoken

    with contextlib.redirect_stdout(io.StringIO()):
        _, merges = gigatoken.train_bpe(path, vocab_size, [SEPARATOR], separator=SEPARATOR.encode())
    return len(merges)


def train_rustbpe(path: Path, vocab_size: int, threads: int) -> int:
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(documents(path)), vocab_size - 1, pattern=GPT2)
    return tokenizer.vocab_size - 256


def train_tokenizers(path: Path, vocab_size: int, threads: int) -> int:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(path), trainer)
    return tokenizer.get_vocab_size() - 257


def train_bpeasy(path: Path, vocab_size: int, threads: int) -> int:
    import bpeasy

    return len(bpeasy.train_bpe(iter(documents(path)), GPT2, 128, vocab_size - 1)) - 256


def train_sentencepiece(path: Path, vocab_size: int, threads: int) -> int:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in path.read_text(encoding="utf-8").splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        max_sentence_length=1 << 20,
        num_threads=threads,
        minloglevel=2,
    )
    return vocab_size - 256


TRAINERS: dict[str, Callable[[Path, int, int], int]] = {
    "scratchlm": train_scratchlm,
    "gigatoken": train_gigatoken,
    "rustbpe": train_rustbpe,
    "bpeasy": train_bpeasy,
    "tokenizers": train_tokenizers,
    "sentencepiece": train_sentencepiece,
}
"""Name -> trainer. sentencepiece learns another thing (characters, its own split): for the time only."""


# encoding: (ranks file, threads) -> a function from a file's path to its ids, without separators


def encode_scratchlm(ranks: Path, threads: int) -> Callable[[Path], np.ndarray]:
    from scratchlm.tokenizer.formats import load_tiktoken
    from scratchlm.tokenizer.text_files import encode_text_file

    tokenizer = load_tiktoken(ranks, pattern="gpt2")
    return lambda path: encode_text_file(tokenizer, path, separator=SEPARATOR, num_threads=threads).ids


def encode_gigatoken(ranks: Path, threads: int) -> Callable[[Path], np.ndarray]:
    import gigatoken

    tokenizer = gigatoken.gigatoken_rs.BPETokenizer.from_tiktoken(ranks, "gpt2")

    def encode(path: Path) -> np.ndarray:
        source = gigatoken.TextFileSource([path], separator=SEPARATOR)
        found: Any = tokenizer.encode_files(source, parallel=threads > 1)
        return np.asarray(found.layout.content.data)

    return encode


def encode_tiktoken(ranks: Path, threads: int) -> Callable[[Path], np.ndarray]:
    import tiktoken
    import tiktoken.load

    encoding = tiktoken.Encoding(
        "ranks",
        # tiktoken's own spelling of the pattern, with the same splits
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        mergeable_ranks=tiktoken.load.load_tiktoken_bpe(str(ranks)),
        special_tokens={},
    )

    def encode(path: Path) -> np.ndarray:
        texts = documents(path)
        if threads == 1:
            return np.concatenate([encoding.encode_to_numpy(t, disallowed_special=()) for t in texts])
        found = encoding.encode_ordinary_batch(texts, num_threads=threads)
        return np.fromiter((id for ids in found for id in ids), np.uint32)

    return encode


def encode_tokenizers(ranks: Path, threads: int) -> Callable[[Path], np.ndarray]:
    import tokenizers

    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    tokenizer = tokenizers.Tokenizer.from_file(str(ranks.with_name("tokenizer.json")))

    def encode(path: Path) -> np.ndarray:
        found = tokenizer.encode_batch_fast(documents(path), add_special_tokens=False)
        return np.concatenate([np.array(encoding.ids, np.uint32) for encoding in found])

    return encode


ENCODERS: dict[str, Callable[[Path, int], Callable[[Path], np.ndarray]]] = {
    "scratchlm": encode_scratchlm,
    "gigatoken": encode_gigatoken,
    "tiktoken": encode_tiktoken,
    "tokenizers": encode_tokenizers,
}


# decoding: ranks file -> a function from ids (as the library takes them fastest) to text


def decode_scratchlm(ranks: Path) -> Callable[[np.ndarray], str]:
    from scratchlm.tokenizer.formats import load_tiktoken

    return load_tiktoken(ranks, pattern="gpt2").decode


def decode_gigatoken(ranks: Path) -> Callable[[np.ndarray], str]:
    import gigatoken

    tokenizer = gigatoken.gigatoken_rs.BPETokenizer.from_tiktoken(ranks, "gpt2")
    return lambda ids: tokenizer.decode(ids).decode("utf-8", "replace")


def decode_tiktoken(ranks: Path) -> Callable[[list[int]], str]:
    import tiktoken
    import tiktoken.load

    found = tiktoken.load.load_tiktoken_bpe(str(ranks))
    return tiktoken.Encoding("ranks", pat_str=GPT2, mergeable_ranks=found, special_tokens={}).decode


def decode_tokenizers(ranks: Path) -> Callable[[list[int]], str]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(ranks.with_name("tokenizer.json")))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


MODULES = {"scratchlm": "scratchlm.tokenizer.bpe_train"}
"""What to import before the clock starts, where it is not the library's own name."""


DECODERS: dict[str, Callable[[Path], Callable[[Any], str]]] = {
    "scratchlm": decode_scratchlm,
    "gigatoken": decode_gigatoken,
    "tiktoken": decode_tiktoken,
    "tokenizers": decode_tokenizers,
}
