# ruff: noqa: ANN001, ANN201  (arguments of device functions are Triton's, without Python types)
r"""Which blocks of the score matrix a tile meets, and what happens to the scores in them.

Queries are rows, keys are columns; query i stands at position i + S - T, the last one at the last key. Causal
attention with a window of w leaves a band of the matrix. A tile of queries walks from `begin` to `end`, and
only the blocks at the edges are compared with anything; the others have no masked scores:

            begin   clear_begin      clear_end    end
              |          |               |         |
     row 64   . x x x x x x x x x x x x x x . . . .          x  visible
       ..     . . . . x x x x x x x x x x x x x x .          .  masked
     row 127  . . . . . . x x x x x x x x x x x x x
              |  edge    |     clear     |  edge   |

It is one loop with a question (is this block at an edge?), not three loops: the copies from memory then never
pause between two loops, and the compiler has half the registers to keep. dK and dV walk down the queries of a
tile of keys in the same way. Scores are kept in units of log2, so that the softmax is exp2, which the GPU has
as an instruction.

Source: leaving out masked blocks: Dao 2023, https://arxiv.org/abs/2307.08691, section 3.1.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

LOWEST = tl.constexpr(-3.4028234e38)
"""The lowest finite float32: a running maximum starts here, not at -inf, because -inf - -inf is NaN; a row
that has seen only masked scores (-inf) then gets the weights exp2(-inf - LOWEST) = 0."""

DOCUMENT_BLOCK = tl.constexpr(64)
"""Tokens of which `document_ranges_kernel` notes the lowest and the highest document number."""

DOCUMENTS_AT_ONCE = tl.constexpr(128)
"""Blocks of documents that a program compares at a time; 128 * 64 tokens are one step for most contexts."""


@triton.jit
def key_stretches(
    first_row, num_queries, num_keys, window,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Return begin, clear_begin, clear_end, end: the keys that rows first_row ... + ROWS - 1 see."""
    past = num_keys - num_queries
    begin = 0
    clear_begin = 0
    if CAUSAL:
        end = tl.minimum(past + first_row + ROWS, num_keys)
        clear_end = (past + first_row + 1) // BLOCK * BLOCK  # every row sees the keys up to the first row's
        if window is not None:
            begin = tl.maximum(past + first_row - window + 1, 0) // BLOCK * BLOCK
            # a block's first key must be in the last row's window
            clear_begin = past + first_row + ROWS - window
    else:
        end = num_keys
        clear_end = num_keys // BLOCK * BLOCK  # the last block may have keys that do not exist
    return begin, clear_begin, clear_end, end


@triton.jit
def query_stretches(
    first_key, num_queries, num_keys, window,
    KEYS: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Return begin, clear_begin, clear_end, end: the queries that see keys first_key ... + KEYS - 1."""
    past = num_keys - num_queries
    begin = 0
    clear_begin = 0
    end = num_queries
    # the last block may have rows that do not exist: they are read as zeros, which add nothing
    clear_end = num_queries
    if CAUSAL:
        begin = tl.maximum(first_key - past, 0) // BLOCK * BLOCK
        clear_begin = first_key + KEYS - 1 - past  # a block's first row must see the last key
        if window is not None:
            end = tl.minimum(end, first_key + KEYS - 1 + window - past)
            clear_end = first_key + window - past - BLOCK + 1  # its last row must see the first key
    else:
        # keys that do not exist have the score 0, and 2^(0 - lse) has no bound: dq would become inf * 0
        clear_end = tl.where(first_key + KEYS > num_keys, begin, clear_end)
    return begin, clear_begin, clear_end, end


@triton.jit
def visible(positions, keys, row_documents, key_documents, num_keys, window, CAUSAL: tl.constexpr):
    """Return where a query may see a key; positions and keys are a column and a row, or the other way."""
    # causal: no query stands behind the last key, so keys that do not exist are in the future too
    allowed = (keys <= positions) if CAUSAL else (keys < num_keys) & (positions == positions)
    if window is not None:
        allowed = allowed & (keys > positions - window)
    if row_documents is not None:
        allowed = allowed & (row_documents == key_documents)
    return allowed


@triton.jit
def bend(products, positions, keys, slope, softcap, SCALE: tl.constexpr):
    """Return scores = q k scaled, capped and biased, and the soft-cap's derivative (with a soft-cap only).

    Without soft-cap and ALiBi the products stay as they are, and the caller leaves scale * log2(e) to the
    multiply-add that also subtracts the maximum: no instruction is spent on it. Otherwise the scores are in
    units of log2.
    """
    scores = products
    derivative = products
    if softcap is not None:
        # tanh(x) = 1 - 2 / (e^2x + 1): right at both ends, where e^2x is 0 or inf. Near 0 the two terms
        # cancel and the error is several times float32's own, so there the series' first four terms
        x = products * (SCALE / softcap)
        square = x * x
        tanh = 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1)
        series = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
        tanh = tl.where(square < 0.04, series, tanh)
        derivative = 1 - tanh * tanh
        scores = tanh * (softcap * LOG2E)
    elif slope is not None:
        scores = products * (SCALE * LOG2E)
    if slope is not None:
        # positions and their differences are exact in float32 up to 2^24 tokens
        scores += (slope * LOG2E) * (keys - positions).to(tl.float32)
    return scores, derivative


@triton.jit
def load_rows(
    start, stride, first, end,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Return rows first ... first + ROWS - 1 of a matrix: (ROWS, PADDED), zeros where there is nothing.

    Without CHECK all rows must exist. The offset of the first row is 64 bits wide, those in the tile 32.
    """
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, PADDED)
    places = start + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    if CHECK and PADDED != WIDTH:
        tile = tl.load(places, mask=(rows[:, None] < end - first) & (columns[None, :] < WIDTH), other=0.0)
    elif CHECK:
        tile = tl.load(places, mask=rows[:, None] < end - first, other=0.0)
    elif PADDED != WIDTH:
        tile = tl.load(places, mask=columns[None, :] < WIDTH, other=0.0)
    else:
        tile = tl.load(places)
    return tile


@triton.jit
def load_tile(
    source, strides, batch, head, first, end,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, CHECK: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Return load_rows of one head of a (batch, heads, rows, WIDTH) tensor, by pointers or by its descriptor.

    A descriptor leaves addresses, bounds and zeros to the GPU's copy engine (TMA, from compute capability 9.0
    on); otherwise every thread computes the address of every 16 bytes that it asks for.
    """
    if DESCRIPTORS:
        places = [tl.cast(batch, tl.int32), tl.cast(head, tl.int32), tl.cast(first, tl.int32), 0]
        tile = source.load(places).reshape(ROWS, PADDED)
    else:
        start = source + batch * strides[0] + head * strides[1]
        tile = load_rows(start, strides[2], first, end, ROWS, WIDTH, PADDED, CHECK)
    return tile


@triton.jit
def load_numbers(source, stride, row, first, end, COUNT: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Return COUNT numbers of row `row` of a matrix from `first` on, by pointers or by its descriptor.

    A thread that multiplies needs a quarter of all columns' numbers, which it would ask for one by one.
    """
    if DESCRIPTORS:
        numbers = source.load([tl.cast(row, tl.int32), tl.cast(first, tl.int32)]).reshape(COUNT)
    else:
        columns = first + tl.arange(0, COUNT)
        numbers = tl.load(source + row * stride + columns, mask=columns < end, other=0.0)
    return numbers


@triton.jit
def store_rows(
    start, stride, first, end, tile,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write a (ROWS, PADDED) tile to rows first ... of a matrix, leaving out what does not exist."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, PADDED)
    places = start + tl.cast(first, tl.int64) * stride + (rows[:, None] * stride + columns[None, :])
    mask = rows[:, None] < end - first
    if PADDED != WIDTH:
        mask = mask & (columns[None, :] < WIDTH)
    tl.store(places, tile.to(start.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_keys"])
def document_ranges_kernel(documents, lowest, highest, stride_batch, num_keys, BLOCK: tl.constexpr):
    """Note the lowest and the highest document number of each block of BLOCK tokens."""
    num_blocks = tl.cdiv(num_keys, BLOCK)
    batch = (tl.program_id(0) // num_blocks).to(tl.int64)
    block = tl.program_id(0) % num_blocks
    keys = block * BLOCK + tl.arange(0, BLOCK)
    # what does not exist repeats the block's first token
    keys = tl.where(keys < num_keys, keys, block * BLOCK)
    numbers = tl.load(documents + batch * stride_batch + keys)
    tl.store(lowest + tl.program_id(0), tl.min(numbers, axis=0))
    tl.store(highest + tl.program_id(0), tl.max(numbers, axis=0))


@triton.jit
def narrow_to_documents(
    own, lowest, highest, batch, num_keys, begin, end, shift,
    STEP: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Return begin and end, moved to the blocks of tokens that may be of one of the documents `own`.

    Packed documents are numbered in order: only blocks that have one of them are left. Any other numbering
    only makes the stretch longer than it had to be. `begin` and `end` count tokens from `shift` on.
    """
    low = tl.min(own, axis=0)
    high = tl.max(own, axis=0)
    num_blocks = tl.cdiv(num_keys, BLOCK)
    first = num_blocks
    last = num_blocks * 0
    for chunk in tl.range(0, num_blocks, CHUNK):
        blocks = chunk + tl.arange(0, CHUNK)
        exists = blocks < num_blocks
        block_low = tl.load(lowest + batch * num_blocks + blocks, mask=exists, other=0)
        block_high = tl.load(highest + batch * num_blocks + blocks, mask=exists, other=0)
        meets = exists & (block_low <= high) & (block_high >= low)
        first = tl.minimum(first, tl.min(tl.where(meets, blocks, num_blocks), axis=0))
        last = tl.maximum(last, tl.max(tl.where(meets, blocks + 1, 0), axis=0))
    begin = tl.maximum(begin, tl.maximum(first * BLOCK - shift, 0) // STEP * STEP)
    return begin, tl.minimum(end, last * BLOCK - shift)
