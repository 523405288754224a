"""The tokenizer's compiled loops: flat arrays in, flat arrays out; no strings, no lists, no objects.

Reading order; in each group the first file explains the others.

  What the loops are made of
    vector             what Numba lacks: 64-byte compares, unchecked loads, prefetch
    uncounted          loops that take many arrays and count no references to them
    pages              large tables in huge pages
    unicode_classes    code point -> class of character, from one pinned Unicode version
    characters         bytes -> one character: its class and length

  Text -> starts of pieces
    scan_scalar        one character at a time, every split pattern: read first
    scan_gpt2          the same for gpt2, 64 bytes at a time
    wide_characters    characters above ASCII in 64 bytes, for scan_gpt2
    scan_cl100k        the same for cl100k, llama3 and qwen2
    scan_o200k         the same for o200k
    block_classes      a mask for each class of character in 64 bytes, for both
    block_rules        rules that both share: contractions, punctuation, numbers, blanks
    cuts               places where a text may be cut; is it UTF-8?
    specials           where special tokens stand (a trie)

  Training: pieces -> merges
    count              pieces -> each distinct piece once, with its count
    pair_table         all pairs of neighbours: how often, and in which words
    pair_queue         which pair goes next
    merges             the loop: the best pair becomes a symbol wherever it stands
    word_parts         words -> the distinct parts in which given merges work, and back
    superwords         which tokens may hold several words (SuperBPE)
    scaffold           what each merge did to each word; scaffolds -> their parts (Scaffold-BPE)

  Pieces -> ids -> bytes
    encode             windows of pieces -> ids, from a table of pieces met before
    seams              where a long piece may be cut because no merge reaches over
    encode_short       up to 64 bytes, in vector registers
    encode_long        a piece of any length
    dropout            with merges left out at random
    decode             ids -> the bytes they stand for
    last_parts         vocabulary -> the merges that it implies; tokens that no text gives

Each is compiled on its own: the user of one pattern does not wait for the others. Nothing is exported here.
"""
