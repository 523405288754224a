"""Train BPE and Scaffold-BPE on the same text; print one CSV row per vocabulary size, kind and held-out text.

    python experiments/2026-11-scaffold-bpe/measure.py FOLDER > experiments/2026-11-scaffold-bpe/rows.csv

FOLDER holds the texts named below. A rare id is one that the training text gives fewer than 20 times.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from scratchlm.tokenizer import END_OF_TEXT, TOKENIZERS

TRAINING = {
    "books": ["gutenberg_books_a.txt"],
    "web": ["owt_a_train.txt", "owt_b_train.txt", "owt_c_train.txt"],
}
HELD_OUT = {"web": "owt_a_valid.txt", "wikipedia": "wikitext2_raw_valid.txt"}
VOCAB_SIZES = (4096, 10_000, 32_000)
RARE = 20

COLUMNS = (
    "training",
    "vocab_size",
    "kind",
    "scaffolds",
    "merges",
    "rare_ids",
    "training_bytes_per_token",
    "held_out",
    "bytes",
    "tokens",
    "bytes_per_token",
    "entropy_bits",
)


def plain(path):
    """A text without its special tokens."""
    return path.read_text(encoding="utf-8").replace(END_OF_TEXT, "\n")


def entropy(ids):
    """Bits per token of the distribution of single tokens."""
    shares = np.bincount(ids) / len(ids)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def rows(folder):
    """Train and measure."""
    held_out = {name: plain(folder / file) for name, file in HELD_OUT.items()}
    for training, files in TRAINING.items():
        texts = [plain(folder / file) for file in files]
        num_bytes = sum(len(text.encode("utf-8")) for text in texts)
        for vocab_size in VOCAB_SIZES:
            for kind in ("bpe", "scaffold"):
                tokenizer = TOKENIZERS.build(kind, vocab_size=vocab_size).train(texts)
                ids = np.concatenate([tokenizer.encode_to_numpy(text) for text in texts])
                rare = int((np.bincount(ids, minlength=vocab_size)[257:] < RARE).sum())
                for name, text in held_out.items():
                    found = tokenizer.encode_to_numpy(text)
                    size = len(text.encode("utf-8"))
                    yield (
                        training,
                        tokenizer.vocab_size,
                        kind,
                        len(getattr(tokenizer, "scaffolds", ())),
                        len(tokenizer.merges),
                        rare,
                        round(num_bytes / len(ids), 4),
                        name,
                        size,
                        len(found),
                        round(size / len(found), 4),
                        round(entropy(found), 4),
                    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder of the texts")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows(Path(sys.argv[1])):
        writer.writerow(row)
        sys.stdout.flush()
