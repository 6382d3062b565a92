"""The gradient by a tile's rows: dL/ds of its pairs, from terms and anchors, and the sums that become dx."""

import triton
import triton.language as tl

from .folds import larger, term_weight
from .tiles import accumulate_grad, load, load_rows, power, round_weights
from .walks import place


@triton.jit
def both_weights(term, row, column, k, slope, SIDE: tl.constexpr):
    """dL/dterm times the slope, for fold k, summed over the anchors of both sides."""
    if len(row) == 0:
        return term_weight(term[0], column[k], slope)
    elif len(column) == 0:
        return term_weight(term[0], row[k], slope)
    else:
        return term_weight(term[0], row[k], slope) + term_weight(term[0], column[k], slope)


@triton.jit
def tile_grad(terms, mask, row, column, sums, POSITIVE: tl.constexpr, SIDE: tl.constexpr = 0):
    """dL/ds [BM, BN] for the pairs in the mask, or for all if it is None; and `sums`, a tuple of [BM], to which dL by
    as many of the loss's numbers has been added.

    row, column: the anchors of either side for each fold; () if the rows of the side are not anchors.
    """
    g = both_weights(terms[0], row, column, 0, terms[0][1], SIDE)  # not added to 0, which would be one more instruction
    for k in tl.static_range(len(row) if len(row) > 0 else len(column)):
        term = terms[k]
        if len(term) > 1:  # the term is not a constant; the first never is
            if k > 0:
                g += both_weights(term, row, column, k, term[1], SIDE)
            if len(sums) > 0:
                weight = both_weights(term, row, column, k, 1.0, SIDE)
                grown = ()
                for p in tl.static_range(len(sums)):
                    by_number = weight * term[2 + p]
                    if mask is not None:
                        by_number = tl.where(mask, by_number, 0.0)
                    grown = grown + (sums[p] + tl.sum(by_number, 1),)
                sums = grown
    if mask is not None:
        g = tl.where(mask, g, 0.0)
    return g, sums


@triton.jit
def zeros(COUNT: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr = 0):
    """A tuple of zeros, each [BM] or, with BD, [BM, BD]."""
    found = ()
    for _ in tl.static_range(COUNT):
        if BD == 0:
            found = found + (tl.zeros([BM], tl.float32),)
        else:
            found = found + (tl.zeros([BM, BD], tl.float32),)
    return found


@triton.jit
def add_gradient(
    acc, row_share, top, by_offset, g, d_e, t, shares, x, y, ys, r0, c0, first, N, M, D,
    ROW_SHARE: tl.constexpr, PRECISION: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The gradient after adding a tile with dL/ds g."""
    w, acc, row_share, top = round_weights(g * d_e, acc, row_share, top, x.rows.dtype.element_ty, PRECISION)
    if ROW_SHARE:
        row_share += tl.sum(w.to(tl.float32) * t, 1)
    acc = accumulate_grad(acc, w, x.rows, y.rows, ys, r0, c0, first, N, M, D, BD, PRECISION, WHOLE, EVEN)
    if len(by_offset) > 0:
        by_offset = (by_offset[0] + tl.sum(g * shares[0], 1),)
    return acc, row_share, top, by_offset


@triton.jit
def store_gradient(
    out_ptr, acc, row_share, top, f, scale, x, r0, rows, first, N, D,
    PRECISION: tl.constexpr, ROW_SHARE: tl.constexpr, ADD: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Store chunks of dx from dimension `first` on, less the rows' own share and times a scale, in this split's out, or
    add them to it if ADD. Rows from number `rows` on get 0."""
    r = r0 + tl.arange(0, acc[0].shape[0])
    out_ptr += tl.program_id(1).to(tl.int64) * N * D + place(x, r, N).to(tl.int64)[:, None] * D
    SCALED: tl.constexpr = (PRECISION != "manhattan") & (x.rows.dtype.element_ty == tl.float16)
    for k in tl.static_range(len(acc)):
        dims = first + k * BD + tl.arange(0, BD)
        inside = (r < N)[:, None] & (dims < D)[None, :]
        dx = acc[k]
        if ROW_SHARE:
            dx -= row_share[:, None] * f * load_rows(x.rows, r0, dims, N, D, dx.shape[0]).to(tl.float32)
        if SCALED:  # `round_weights` has scaled it
            dx *= power(top - 15)[:, None]
        dx = tl.where((r < rows)[:, None], dx * scale, 0.0)
        if ADD:
            dx += tl.load(out_ptr + dims[None, :], mask=inside, other=0.0)
        tl.store(out_ptr + dims[None, :], dx.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def idle(e, x, own, other, r, N, margin, APART: tl.constexpr):
    """Whether all pairs of a tile are farther apart than the margin, less the rows' offsets."""
    if len(x.offsets) > 0:
        offset = load(x.offsets[0], r, N)[:, None]
        margin = margin - offset + 5e-7 * (tl.abs(margin) + tl.abs(offset))  # the terms may be rounded otherwise
    nearness, limit = APART(e, own, other, margin)
    return tl.min((tl.reduce(nearness, 1, larger, keep_dims=True) <= limit).to(tl.int32)) > 0


@triton.jit
def load_upstream(scales, FOLDS: tl.constexpr):
    """What multiplies dL/dstates; () if nothing does."""
    loaded = ()
    if len(scales) > 0:
        for k in tl.static_range(FOLDS):
            loaded = loaded + (tl.load(scales[0] + k) * tl.load(scales[1]),)
    return loaded
