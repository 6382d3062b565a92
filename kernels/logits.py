"""Losses of given logits: a softmax over the classes of a row, or every element by itself.

The kernels are memory-bound: logits are read once forward and once backward. Logits are [N, C, P] in memory: the
classes of row r = (n, p) are P apart (P = 1 for a matrix, the pixels for images), so that no layout needs a copy.
"""

import triton
import triton.language as tl

from .folds import empty_folds, fold_tile, store_folds
from .losses import log1p
from .tiles import load
from .walks import split_columns


@triton.jit
def load_tile(z_ptr, target_ptr, weight, smoothing, r, c, R, C, P, INDICES: tl.constexpr):
    """The addresses and logits of a tile, what is inside, the rows' own classes, and every class's share. [BM, BC] each

    The share of class c in the loss of its row is its weight times (kept q + spread), where kept = 1 - label smoothing,
    spread = label smoothing / C, and q is the target probability, or 1 for the class that an index names. A row without
    a class is read as 0, whatever it holds.
    """
    at = ((r // P) * C * P + r % P)[:, None] + c.to(tl.int64)[None, :] * P
    inside = (r < R)[:, None] & (c < C)[None, :]
    counted, own = inside, inside
    if INDICES:
        y = tl.load(target_ptr + r, mask=r < R, other=-1)[:, None]
        counted, own = inside & (y >= 0), inside & (y == c[None, :])
        q = tl.where(own, 1.0, 0.0)
    else:
        q = tl.load(target_ptr + at, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + at, mask=counted, other=0.0).to(tl.float32)
    kept, spread = smoothing
    share = kept * q + spread
    if len(weight) > 0:
        share *= load(weight[0], c, C).to(tl.float32)[None, :]
    return at, z, inside, own, tl.where(inside, share, 0.0)


@triton.jit
def reference(best):
    """The highest logit, which is subtracted from the others; 0 if all are -inf, since -inf - -inf is NaN."""
    return tl.where(best == float("-inf"), 0.0, best)


@triton.jit(do_not_specialize=["R"])
def fold_logits(
    z_ptr, target_ptr, weight, smoothing, kinds, states_ptr, R, C, P,  # kinds: a log sum exp; states [splits, folds, R]
    INDICES: tl.constexpr, SHARES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Row states of R rows over the classes of this program's split. Grid: (row blocks, splits).

    INDICES: the target is an index, otherwise a probability of every class.
    SHARES: the states are the sum of the shares, the log sum exp of all classes, and the sum of share times
    (log sum exp - logit). This is a sum of numbers that are at least 0, relative to the highest logit so far, so that
    large logits lose no digits. Otherwise they are the logit of the own class, and the log sum exp of the others.
    """
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    first, cost = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    folds = empty_folds(kinds, False, BM)
    start, end = split_columns(C, BC)
    for c0 in range(start, end, BC):
        c = c0 + tl.arange(0, BC)
        _at, z, inside, own, share = load_tile(z_ptr, target_ptr, weight, smoothing, r, c, R, C, P, INDICES)
        if SHARES:
            before = reference(folds[0][0])
            folds = fold_tile(folds, ((z,),), inside, False, 1)
            best = reference(folds[0][0])
            apart = tl.where(share == 0.0, 0.0, share * (best[:, None] - z))  # a share of 0 costs nothing, even at -inf
            cost += first * (best - before) + tl.sum(apart, 1)
            first += tl.sum(share, 1)
        else:
            first += tl.sum(tl.where(own, z, 0.0), 1)
            folds = fold_tile(folds, ((z,),), inside & ~own, False, 1)
    at = states_ptr + tl.program_id(1).to(tl.int64) * (3 if SHARES else 2) * R
    tl.store(at + r, first.to(states_ptr.dtype.element_ty), mask=r < R)
    store_folds(at, folds, 1, r, r < R, r < R, R)
    if SHARES:
        mass = folds[0][1]
        left_out = (mass == 0.0) & (tl.num_programs(1) > 1)  # a part of the classes may be left out, a row not
        cost += tl.where(left_out, 0.0, first * tl.log(mass))
        tl.store(at + 2 * R.to(tl.int64) + r, cost.to(states_ptr.dtype.element_ty), mask=r < R)


@triton.jit(do_not_specialize=["R"])
def logits_grad(
    z_ptr, target_ptr, weight, smoothing, kinds, states, dstates, out_ptr, R, C, P,  # states, dstates [folds, R]
    INDICES: tl.constexpr, SHARES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dz of a tile, which may be written over z. Grid: (row blocks, class blocks)."""
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    at, z, inside, own, share = load_tile(z_ptr, target_ptr, weight, smoothing, r, c, R, C, P, INDICES)
    step = R.to(tl.int64)
    exact = load(states + step, r, R)
    lse = exact.to(tl.float32)
    rest = tl.where(exact == lse.to(exact.dtype), 0.0, exact - lse.to(exact.dtype))  # not inf - inf
    d_lse = load(dstates + step, r, R).to(tl.float32) * tl.exp(-rest.to(tl.float32))
    if SHARES:
        d_cost = load(dstates + 2 * step, r, R).to(tl.float32)
        g = d_lse[:, None] * tl.exp(z - lse[:, None]) - d_cost[:, None] * share
    else:
        lse = tl.where(lse == float("-inf"), float("inf"), lse)  # if all others are -inf their share is 0, not NaN
        g = d_lse[:, None] * tl.exp(z - lse[:, None])
        g = tl.where(own, load(dstates, r, R).to(tl.float32)[:, None], g)
    tl.store(out_ptr + at, g.to(out_ptr.dtype.element_ty), mask=inside)


# Losses of an element: (value, derivative by z) of a logit z and a target t in [0, 1].


@triton.jit
def sigmoids(z):
    """p = sigmoid(z), 1 - p, -log p and -log(1 - p), all to the last bits."""
    v = tl.exp(-tl.abs(z))
    p = tl.where(z < 0.0, v, 1.0) / (1.0 + v)
    q = tl.where(z < 0.0, 1.0, v) / (1.0 + v)
    low = log1p(v)
    return p, q, tl.where(z >= 0.0, 0.0, -z) + low, tl.where(z <= 0.0, 0.0, z) + low


@triton.jit
def answered(t, if_1, if_0):
    """t if_1 and (1 - t) if_0; 0 where the factor is 0, even if the other number is infinite."""
    return tl.where(t == 0.0, 0.0, t * if_1), tl.where(t == 1.0, 0.0, (1.0 - t) * if_0)


@triton.jit
def binary_cross_entropy(z, t, pos_weight, numbers):
    p, q, if_1, if_0 = sigmoids(z)
    yes, no = answered(t, if_1, if_0)
    return pos_weight * yes + no, (1.0 - t) * p - pos_weight * t * q


@triton.jit
def sigmoid_focal(z, t, pos_weight, numbers):
    """alpha_t (1 - p_t)^gamma times the cross entropy, for alpha and gamma in numbers; alpha_t is 1 for alpha < 0.

    Where z saturates, u = 1 - p_t is 0 and u^(gamma - 1) is infinite; du/dz / u, the slope of log u, is neither.
    """
    alpha, gamma = numbers
    p, q, if_1, if_0 = sigmoids(z)
    soft_u = tl.where((t == 0.0) | (t == 1.0), 1.0, p * (1.0 - t) + q * t)
    log_u = tl.where(t == 1.0, -if_0, tl.where(t == 0.0, -if_1, tl.log(soft_u)))
    slope = tl.where(t == 1.0, -p, tl.where(t == 0.0, q, (1.0 - 2.0 * t) * p * q / soft_u))
    yes, no = answered(t, if_1, if_0)
    entropy = yes + no
    power = tl.where(gamma == 0.0, 1.0, tl.exp(gamma * log_u))
    balance = tl.where(alpha < 0.0, 1.0, alpha * t + (1.0 - alpha) * (1.0 - t)) * power
    return balance * entropy, balance * (gamma * slope * entropy + (1.0 - t) * p - t * q)


@triton.jit
def load_factors(weight, i, n):
    """The weights of elements i: () for none, (ptr,) for one per element, (ptr, period) for weights that repeat."""
    if len(weight) == 0:
        return 1.0
    elif len(weight) == 1:
        return load(weight[0], i, n).to(tl.float32)
    else:
        values, period = weight
        return tl.load(values + i % period, mask=i < n, other=0.0).to(tl.float32)


@triton.jit
def element_terms(z_ptr, target_ptr, weight, pos_weight, numbers, n, LOSS: tl.constexpr, BLOCK: tl.constexpr):
    """The indices of this program's elements, their weights, values and derivatives. [BLOCK] each"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z, t = load(z_ptr, i, n).to(tl.float32), load(target_ptr, i, n).to(tl.float32)
    value, slope = LOSS(z, t, load_factors(pos_weight, i, n), numbers)
    return i, load_factors(weight, i, n), value, slope


@triton.jit
def fold_elements(
    z_ptr, target_ptr, weight, pos_weight, numbers, out_ptr, n,
    LOSS: tl.constexpr, TOTAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of every element [n], or the sum over each program's elements [programs] if TOTAL."""
    i, w, value, _slope = element_terms(z_ptr, target_ptr, weight, pos_weight, numbers, n, LOSS, BLOCK)
    if TOTAL:
        tl.store(out_ptr + tl.program_id(0), tl.sum(tl.where(i < n, w * value, 0.0), 0))
    else:
        tl.store(out_ptr + i, w * value, mask=i < n)


@triton.jit
def elements_grad(
    z_ptr, target_ptr, weight, pos_weight, numbers, dout_ptr, out_ptr, n,
    LOSS: tl.constexpr, TOTAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dz of every element, which may be written over z; dout is the derivative by the sum if TOTAL."""
    i, w, _value, slope = element_terms(z_ptr, target_ptr, weight, pos_weight, numbers, n, LOSS, BLOCK)
    if TOTAL:
        g = tl.load(dout_ptr).to(tl.float32)
    else:
        g = load(dout_ptr, i, n).to(tl.float32)
    tl.store(out_ptr + i, (g * w * slope).to(out_ptr.dtype.element_ty), mask=i < n)
