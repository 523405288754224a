"""The tokenizer's compiled loops: flat arrays in, flat arrays out; no strings, no lists, no objects.

    vector            what Numba lacks: 64-byte compares, unchecked loads, prefetch
    unicode_classes   code point -> class of character, from one pinned Unicode version
    scan_scalar       bytes -> starts of pieces, one character at a time, every split pattern: read first
    scan_gpt2, scan_cl100k, scan_o200k    the same, 64 bytes at a time
    cuts              places where a text may be cut; is it UTF-8?
    specials          where special tokens stand (a trie)
    count             pieces -> each distinct piece once, with its count
    merges, merge_pairs, pair_queue    distinct pieces -> the merges in order
    encode, encode_short, encode_long    pieces -> ids
    decode            ids -> bytes

Each is compiled on its own: the user of one pattern does not wait for the others. Nothing is exported here.
"""
