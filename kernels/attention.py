"""The kernel that folds a row's negatives as attention does: beside their log sum exp, it sums what they pull.

Where the cost of a row depends on the log sum exp of its negatives less the sum of its positives, as in InfoNCE, the
derivatives by both are opposite numbers, and the gradient by the row is

    dx_i = dL/dpositive_i (sum over its positives of dterm/dx_i - mean of dterm/dx_i over its negatives)

with the softmax of the negatives' terms as the weights of the mean. What stands in brackets needs no derivative from
outside, so one pass has it beside the states, and the backward multiplies its rows. The terms are linear in the scores:
their slope is one number, which multiplies the sums and not the tiles.
"""

import triton
import triton.language as tl

from .engine import shift
from .folds import empty_folds, exp, fold_tile, larger, store_folds
from .gradients import add_gradient, store_gradient, zeros
from .tiles import LOWEST, accumulate, load, load_chunks, load_norms, load_numbers
from .walks import both, column, count, counting, pair_masks, place, walks


def _composed(spec):
    """The name that a profiler shows, for example attend_softmax_similarity."""
    return "_".join(["attend", spec.constants["LOSS"].__name__, spec.constants["SCORE"].__name__])


@triton.jit
def scaled(acc, factor):
    """Chunks of sums [BM, BD], their rows multiplied by the factor [BM]."""
    found = ()
    for k in tl.static_range(len(acc)):
        found = found + (acc[k] * factor[:, None],)
    return found


@triton.jit
def add_negatives(
    acc, row_share, top, folded, z, mask, d_e, t, x, y, ys, r0, c0, N, M, D,
    ROW_SHARE: tl.constexpr, PRECISION: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The weighted sums and the log sum exp (maximum, mass) after a tile's terms z in the mask, or all if it is None.
    The sums have the weights exp(z - maximum), and lack the slope."""
    high, mass = folded
    if mask is not None:
        z = tl.where(mask, z, float("-inf"))
    best = larger(high, tl.max(z, 1))
    base = tl.where(best == float("-inf"), 0.0, best)  # -inf - -inf would be NaN
    lower = exp(high - base)
    p = exp(z - base[:, None])
    mass = mass * lower + tl.sum(p, 1)
    acc, row_share, top, _none = add_gradient(
        scaled(acc, lower), row_share * lower, top, (), p, d_e, t, (1.0, 1.0), x, y, ys, r0, c0, 0, N, M, D,
        ROW_SHARE, PRECISION, BD, WHOLE, EVEN,
    )  # fmt: skip
    return acc, row_share, top, (best, mass)


@triton.jit
def near_tile(
    x, y, xs, ys, own, xl, r0, c0, columns, ref_offset, N, M, D,
    SCORE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, NEAR: tl.constexpr, BD: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The scores of a near tile, what their derivatives need, and which pairs are positive and which negative."""
    r, c = r0 + tl.arange(0, BM), c0 + tl.arange(0, NEAR)
    e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, NEAR, BD, PRECISION, False, EVEN)
    s, d_e, t, _f = SCORE(e, own, load_norms(y.norms, c, M, 0))
    s, _shares = shift(s, x, y, r, c, N, M, False)
    positive, negative = pair_masks(xl, load(y.labels, c, M), c, columns, place(x, r, N), place(y, c, M), ref_offset)
    counts = counting(s, x, y)
    return s, d_e, t, both(positive, counts), both(negative, counts)


@triton.jit(do_not_specialize=["N", "M"], repr=_composed)
def attend(
    x, y, pos, neg, states_ptr, out_ptr, ref_offset, N, M, D,  # states [2, N]; out [N, D]
    SCORE: tl.constexpr, LOSS: tl.constexpr, ROW_SHARE: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The sum of each row's positives and the log sum exp of its negatives, and dx without dL/dpositive.
    Grid: (row blocks,). The arguments are those of the engine.
    """
    r0 = tl.program_id(0) * BM
    r = r0 + tl.arange(0, BM)
    own, xl = load_norms(x.norms, r, N, 1), load(x.labels, r, N)
    xs = load_chunks(x.rows, r0, N, D, BM, BD, CHUNKS, False, EVEN)
    up, down = load_numbers(pos.numbers), load_numbers(neg.numbers)
    acc = zeros(CHUNKS, BM, BD)
    row_share = tl.zeros([BM], tl.float32)  # sum_j w_ij t_ij
    top = tl.full([BM], LOWEST, tl.int32)
    pos_folds = empty_folds(pos.kinds, True, BM)
    (folded,) = empty_folds(neg.kinds, False, BM)
    rows, columns = count(x, N), count(y, M)
    far, near = walks(x, rows, columns, BM, BN, False)

    for at in range(far[0], far[1], BN):
        c0 = column(at, far, BN)
        c = c0 + tl.arange(0, BN)
        ys = load_chunks(y.rows, c0, M, D, BN, BD, CHUNKS, True, EVEN)
        e = accumulate(x.rows, y.rows, xs, ys, r0, c0, N, M, D, BM, BN, BD, PRECISION, True, EVEN)
        s, d_e, t, _f = SCORE(e, own, load_norms(y.norms, c, M, 0, True))
        s, _shares = shift(s, x, y, r, c, N, M, True)
        z = LOSS(s, down, False)[0][0]
        acc, row_share, top, folded = add_negatives(
            acc, row_share, top, folded, z, counting(s, x, y), d_e, t, x, y, ys, r0, c0, N, M, D,
            ROW_SHARE, PRECISION, BD, True, EVEN,
        )  # fmt: skip

    for at in tl.range(near[0], near[1], NEAR, num_stages=1):
        c0 = column(at, near, NEAR)
        ys = load_chunks(y.rows, c0, M, D, NEAR, BD, CHUNKS, False, EVEN)
        s, d_e, t, positive, negative = near_tile(
            x, y, xs, ys, own, xl, r0, c0, columns, ref_offset, N, M, D, SCORE, PRECISION, BM, NEAR, BD, EVEN
        )
        pos_folds = fold_tile(pos_folds, LOSS(s, up, True), positive, True, 1)
        z = LOSS(s, down, False)[0][0]
        acc, row_share, top, folded = add_negatives(
            acc, row_share, top, folded, z, negative, d_e, t, x, y, ys, r0, c0, N, M, D,
            ROW_SHARE, PRECISION, BD, False, EVEN,
        )  # fmt: skip

    high, mass = folded
    share = -1.0 / tl.where(mass == 0.0, 1.0, mass)  # a row without negatives has sums of 0
    share *= LOSS(high, down, False)[0][1]
    acc, row_share = scaled(acc, share), row_share * share
    for at in tl.range(near[0], near[1], NEAR, num_stages=1):  # all positives are here, and few other pairs
        c0 = column(at, near, NEAR)
        ys = load_chunks(y.rows, c0, M, D, NEAR, BD, CHUNKS, False, EVEN)
        s, d_e, t, positive, negative = near_tile(
            x, y, xs, ys, own, xl, r0, c0, columns, ref_offset, N, M, D, SCORE, PRECISION, BM, NEAR, BD, EVEN
        )
        # All rows have the same slope, whose error would not average out. So it is rounded in two parts.
        pull = tl.where(positive, LOSS(s, up, True)[0][1], 0.0) * d_e
        coarse = pull.to(tl.bfloat16).to(tl.float32)
        for part in tl.static_range(2):
            acc, row_share, top, _none = add_gradient(
                acc, row_share, top, (), coarse if part == 0 else pull - coarse, 1.0, t, (1.0, 1.0), x, y, ys, r0, c0,
                0, N, M, D, ROW_SHARE, PRECISION, BD, False, EVEN,
            )  # fmt: skip

    own = load_norms(x.norms, r, N, 1)  # loaded again rather than held in registers through the loops
    _s, _d, _t, f = SCORE(own[0], own, own)
    store_gradient(out_ptr, acc, row_share, top, f, 1.0, x, r0, rows, 0, N, D, PRECISION, ROW_SHARE, False, BD)
    places = place(x, r, N)
    store_folds(states_ptr, pos_folds, 0, places, r < N, r < rows, N)
    store_folds(states_ptr, ((high, mass),), 1, places, r < N, r < rows, N)
