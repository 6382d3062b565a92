"""The two kernels that run every loss made of row folds.

`fold` turns each anchor's row of scores into a few numbers, its row states; `grad` recomputes the tiles and turns the
derivatives of those numbers into dx. A side (`x`, `y`) is the tuple (rows [N, D], norms [N], labels [N]) and, if its
rows have offsets, those [N], see `shift`. Each program owns its output rows, so there are no atomics and results are
the same bit for bit from run to run.
"""

import triton
import triton.language as tl

from .folds import empty_folds, fold_tile, load_anchors, store_folds, term_weight
from .tiles import (
    accumulate,
    accumulate_grad,
    load_chunks,
    load_labels,
    load_norms,
    load_numbers,
    load_rows,
    pair_masks,
    round_weights,
    score_tile,
    share_labels,
)


def _composed(spec):
    """The name a profiler shows: fold_contrastive_euclidean, say."""
    kernel = "grad" if "SLAB" in spec.constants else "fold"
    return "_".join([kernel, spec.constants["LOSS"].__name__, spec.constants["SCORE"].__name__])


@triton.jit
def shift(s, x, y, r, c, N, M):
    """The scores plus the offsets of the one side that has them (the bias of a class), or, where both have them, lifted
    by log(exp(v_i) + exp(v_j)) of the offsets v; and the derivative by v_i. [BM, BN] each"""
    if len(x) > 3:
        v = tl.load(x[3] + r, mask=r < N, other=0.0)[:, None]
    if len(y) > 3:
        w = tl.load(y[3] + c, mask=c < M, other=0.0)[None, :]
    if len(x) > 3 and len(y) > 3:
        high = tl.maximum(v, w)
        apart = tl.exp(tl.where(v == w, 0.0, tl.where(v < w, v - w, w - v)))  # two of -inf are equal, not NaN apart
        return s + (high + tl.log(1.0 + apart)), tl.where(v < w, apart, 1.0) / (1.0 + apart)
    elif len(x) > 3:
        return s + v, 1.0
    elif len(y) > 3:
        return s + w, 1.0
    else:
        return s, 1.0


@triton.jit
def split_columns(M, BN: tl.constexpr):
    """The columns of this program's split, which starts at a multiple of BN. Grid axis 1 counts the splits."""
    width = tl.cdiv(tl.cdiv(M, BN), tl.num_programs(1)) * BN
    start = tl.program_id(1) * width
    return start, tl.minimum(start + width, M)


@triton.jit(do_not_specialize=["N", "M"], repr=_composed)
def fold(
    x, y, states_ptr, columns_ptr, numbers, N, M, D,  # states [splits, folds, N]; columns [row blocks, folds, M]
    SCORE: tl.constexpr, LOSS: tl.constexpr, POS: tl.constexpr, NEG: tl.constexpr, SELF: tl.constexpr,
    COLUMNS: tl.constexpr, BRANCH: tl.constexpr, FROM_MEMORY: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Row states of x over the columns of this program's split. Grid: (row blocks, splits).

    POS and NEG name the folds of the positives and of the negatives, see folds.py. COLUMNS: every y is an anchor too,
    and this program writes its states over the rows of this program. BRANCH "near": leave the positives out where the
    labels of a tile say that there are none.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    own, xl = load_norms(x, r, N)[:, None], load_labels(x, r, N)
    xs = load_chunks(x[0], r, N, D, BD, CHUNKS)
    up = load_numbers(numbers, 0, len(numbers) // 2, FROM_MEMORY)  # of the positives
    down = load_numbers(numbers, len(numbers) // 2, len(numbers) // 2, FROM_MEMORY)  # of the negatives
    pos_folds, neg_folds = empty_folds(POS, BM), empty_folds(NEG, BM)

    start, end = split_columns(M, BN)
    for c0 in range(start, end, BN):
        c = c0 + tl.arange(0, BN)
        yl = load_labels(y, c, M)
        s = score_tile(x, y, xs, own, r, c, N, M, D, SCORE, PRECISION, BD, CHUNKS)
        s = shift(s, x, y, r, c, N, M)[0]
        pos, neg = pair_masks(xl, yl, r, c, M, SELF)
        if NEG > 0:
            neg_folds = fold_tile(neg_folds, LOSS(s, down, False), neg, NEG, 1)
        if POS > 0:
            if BRANCH != "near" or share_labels(xl, yl):
                pos_folds = fold_tile(pos_folds, LOSS(s, up, True), pos, POS, 1)
        if COLUMNS:
            inside = (r < N)[:, None]
            at = columns_ptr + tl.program_id(0).to(tl.int64) * (POS % 16 + NEG % 16) * M
            store_folds(at, fold_tile(empty_folds(POS, BN), LOSS(s, up, True), pos & inside, POS, 0), c, M, POS)
            at += (POS % 16) * M.to(tl.int64)
            store_folds(at, fold_tile(empty_folds(NEG, BN), LOSS(s, down, False), neg & inside, NEG, 0), c, M, NEG)

    out = states_ptr + tl.program_id(1).to(tl.int64) * (POS % 16 + NEG % 16) * N
    store_folds(out, pos_folds, r, N, POS)
    store_folds(out + (POS % 16) * N.to(tl.int64), neg_folds, r, N, NEG)


@triton.jit
def tile_grad(
    terms, mask, row, column, sums,  # row, column: (state, dL/dstate) of the anchors on either side, for each fold
    KINDS: tl.constexpr, ANCHORS: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    """dL/ds [BM, BN] of the pairs in mask, folded as KINDS; and `sums` [BM] of dL by each of BY numbers of the loss."""
    g = 0.0
    for k in tl.static_range(KINDS % 16):
        term = terms[k]
        if len(term) > 1:  # not a constant
            weight = 0.0
            if ANCHORS != "y":
                weight += term_weight(term[0], row[k], (KINDS >> (4 + k)) & 1)
            if ANCHORS != "x":
                weight += term_weight(term[0], column[k], (KINDS >> (4 + k)) & 1)
            g += weight * term[1]
            grown = ()
            for p in tl.static_range(BY):
                grown = grown + (sums[p] + tl.sum(tl.where(mask, weight * term[2 + p], 0.0), 1),)
            sums = grown
    return tl.where(mask, g, 0.0), sums


@triton.jit
def zeros(COUNT: tl.constexpr, SIZE: tl.constexpr):
    """A tuple of [SIZE]"""
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros([SIZE], tl.float32),)
    return found


@triton.jit
def store_gradient(
    out_ptr, acc, own_share, f, x, r, first, N, D, OWN: tl.constexpr, ADD: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Chunks of dx from dimension `first` on, less the rows' own share, to this split's out; if ADD, added to it."""
    out_ptr += tl.program_id(1).to(tl.int64) * N * D + r.to(tl.int64)[:, None] * D
    for k in tl.static_range(len(acc)):
        dims = first + k * BD + tl.arange(0, BD)
        inside = (r < N)[:, None] & (dims < D)[None, :]
        dx = acc[k]
        if OWN:
            dx -= own_share[:, None] * f * load_rows(x[0], r, dims, N, D).to(tl.float32)
        if ADD:
            dx += tl.load(out_ptr + dims[None, :], mask=inside, other=0.0)
        tl.store(out_ptr + dims[None, :], dx.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N", "M"], repr=_composed)
def grad(
    x, y, x_states, y_states, outs, numbers, N, M, D,  # outs: dx [splits, N, D], sums [splits, sums, N]
    SCORE: tl.constexpr, LOSS: tl.constexpr, POS: tl.constexpr, NEG: tl.constexpr, ANCHORS: tl.constexpr,
    SELF: tl.constexpr, OWN: tl.constexpr, BY_NUMBERS: tl.constexpr, BRANCH: tl.constexpr, FROM_MEMORY: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
    SLAB: tl.constexpr,
):  # fmt: skip
    """dx of the rows this program owns, SLAB chunks of D of them. Grid: (row blocks, splits, slabs).

    x_states, y_states: (states, derivatives of them), [folds, N] and [folds, M] each. ANCHORS says which there are: "x"
    (of the own rows), "y" (of the other side), "both", whose gradients go through one product, or "self": both, of a
    self batch.
    OWN: the score's gradient has a share of the row itself.
    BRANCH as in `fold`; "zero": leave the product out where the gradient is zero.
    Each row's sums: of dL by its offset, if it has one, and, if BY_NUMBERS, by each of the loss's numbers.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    own, xl = load_norms(x, r, N)[:, None], load_labels(x, r, N)
    xs = load_chunks(x[0], r, N, D, BD, CHUNKS)
    up = load_numbers(numbers, 0, len(numbers) // 2, FROM_MEMORY)  # of the positives
    down = load_numbers(numbers, len(numbers) // 2, len(numbers) // 2, FROM_MEMORY)  # of the negatives
    row_up = load_anchors(x_states, r, N, POS, 0, 1, ANCHORS != "y")
    row_down = load_anchors(x_states, r, N, NEG, POS % 16, 1, ANCHORS != "y")
    first = tl.program_id(2) * SLAB * BD
    acc = ()
    for _ in tl.static_range(SLAB):
        acc = acc + (tl.zeros([BM, BD], tl.float32),)
    own_share = tl.zeros([BM], tl.float32)  # sum_j w_ij t_ij
    BY: tl.constexpr = len(numbers) // 2 if BY_NUMBERS else 0
    by_up, by_down, by_offset = zeros(BY, BM), zeros(BY, BM), tl.zeros([BM], tl.float32)

    start, end = split_columns(M, BN)
    for c0 in range(start, end, BN):
        c = c0 + tl.arange(0, BN)
        other, yl = load_norms(y, c, M)[None, :], load_labels(y, c, M)
        column_up = load_anchors(y_states, c, M, POS, 0, 0, ANCHORS != "x")
        column_down = load_anchors(y_states, c, M, NEG, POS % 16, 0, ANCHORS != "x")
        ys = load_chunks(y[0], c, M, D, BD, CHUNKS)
        e = accumulate(x[0], y[0], xs, ys, r, c, N, M, D, BD, PRECISION)
        s, d_e, t, _f = SCORE(e, own, other)
        s, share = shift(s, x, y, r, c, N, M)
        pos, neg = pair_masks(xl, yl, r, c, M, SELF)
        g = tl.zeros([BM, BN], tl.float32)
        if NEG > 0:
            g, by_down = tile_grad(LOSS(s, down, False), neg, row_down, column_down, by_down, NEG, ANCHORS, BY)
        if POS > 0:
            if BRANCH != "near" or share_labels(xl, yl):
                own_g, by_up = tile_grad(LOSS(s, up, True), pos, row_up, column_up, by_up, POS, ANCHORS, BY)
                g += own_g
        if BRANCH != "zero" or tl.max((g != 0.0).to(tl.int32)) > 0:
            w = round_weights(g * d_e, x[0].dtype.element_ty, PRECISION)
            if OWN:
                own_share += tl.sum(w.to(tl.float32) * t, 1)
            acc = accumulate_grad(acc, w, x[0], y[0], ys, r, c, first, N, M, D, BD, PRECISION)
            if len(x) > 3:
                by_offset += tl.sum(g * share, 1)

    store_gradient(outs[0], acc, own_share, SCORE(own, own, own)[3], x, r, first, N, D, OWN, False, BD)
    if tl.program_id(2) == 0:
        at = outs[1] + tl.program_id(1).to(tl.int64) * (2 * BY + 1) * N + r
        for p in tl.static_range(BY):
            tl.store(at + p * N.to(tl.int64), by_up[p], mask=r < N)
            tl.store(at + (BY + p) * N.to(tl.int64), by_down[p], mask=r < N)
        if len(x) > 3:
            tl.store(at + 2 * BY * N.to(tl.int64), by_offset, mask=r < N)
