"""Files of tokenizers: ours and those of other programs, both ways.

    reading          a path -> bytes, text or JSON; suspicious of everything
    printable        bytes <-> printable characters
    saved            our own file, one JSON table
    gpt2             vocab.json + merges.txt
    tiktoken_ranks   tiktoken's base64 and rank; recovers the merges
    split_patterns   other programs' spellings of our split patterns
    huggingface      tokenizer.json + tokenizer_config.json
    gguf_fields      the tokenizer's fields of a GGUF file
    recognise        `read_any`: a file or folder of any of these

What is read gives the ids of the program that wrote it, or is refused with the field that we do not know.
"""

from scratchlm.tokenizer.formats.gguf_fields import gguf_fields, tokenizer_from_gguf_fields
from scratchlm.tokenizer.formats.gpt2 import load_gpt2, save_gpt2
from scratchlm.tokenizer.formats.huggingface import load_huggingface, save_huggingface
from scratchlm.tokenizer.formats.printable import from_printable, to_printable
from scratchlm.tokenizer.formats.reading import read_json, read_text, saved_problem
from scratchlm.tokenizer.formats.recognise import read_any
from scratchlm.tokenizer.formats.saved import read_saved, write_saved
from scratchlm.tokenizer.formats.tiktoken_ranks import load_tiktoken, save_tiktoken

__all__ = [
    "from_printable",
    "gguf_fields",
    "load_gpt2",
    "load_huggingface",
    "load_tiktoken",
    "read_any",
    "read_json",
    "read_saved",
    "read_text",
    "save_gpt2",
    "save_huggingface",
    "save_tiktoken",
    "saved_problem",
    "to_printable",
    "tokenizer_from_gguf_fields",
    "write_saved",
]
