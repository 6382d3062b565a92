"""Distances (or similarities) of given rows, and of rows given by index, exact in fp32 from the original rows.

A pair's distance and gradient come from up to three sums over D (`stats`), then
    gradient by a = alpha (a - b + eps)   or   alpha sign(a - b + eps)   or, for products,   alpha b + beta a.
"""

import triton
import triton.language as tl


@triton.jit
def load_chunk(ptr, rows, valid, dims, D):
    """ptr[rows, dims] in fp32, 0 where a row is not valid or a dimension is past D. [BM, BD]"""
    mask = valid[:, None] & (dims < D)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * D + dims[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def pair_stats(stats, a, b, in_row, eps, METRIC: tl.constexpr):
    """The sums over D that a pair's distance and gradient need, after adding one chunk. A tuple of [BM]"""
    both, aa, bb = stats
    if (METRIC == "cosine" or METRIC == "similarity") or METRIC == "dot":
        return (both + tl.sum(a * b, 1), aa + tl.sum(a * a, 1), bb + tl.sum(b * b, 1))
    else:
        diff = tl.where(in_row, a - b + eps, 0.0)
        size = tl.abs(diff) if METRIC == "manhattan" else diff * diff
        return (both + tl.sum(size, 1), aa, bb)


@triton.jit
def inverse_norm(sq):
    """1 / max(|x|, 1e-8); NaN stays NaN."""
    return 1.0 / tl.sqrt(tl.where(sq < 1e-16, 1e-16, sq))


@triton.jit
def pair_distance(stats, METRIC: tl.constexpr):
    """The distance or the similarity of each pair. [BM]"""
    both, a, b = stats
    if METRIC == "cosine":
        return 1.0 - both * (inverse_norm(a) * inverse_norm(b))
    elif METRIC == "similarity":
        return both * (inverse_norm(a) * inverse_norm(b))
    elif METRIC == "euclidean":
        return tl.sqrt(both)
    else:
        return both


@triton.jit
def pair_slopes(stats, g, METRIC: tl.constexpr):
    """alpha, and beta for each end, from the upstream derivative g; 0 for a distance of 0. Three of [BM]"""
    both, a, b = stats
    if METRIC == "cosine" or METRIC == "similarity":
        g = g if METRIC == "cosine" else -g
        ra, rb = inverse_norm(a), inverse_norm(b)
        cos = both * (ra * rb)
        by_a = tl.where(a < 1e-16, 0.0, g * cos * (ra * ra))
        return -g * (ra * rb), by_a, tl.where(b < 1e-16, 0.0, g * cos * (rb * rb))
    elif METRIC == "euclidean":
        d = tl.sqrt(both)
        return tl.where(d == 0.0, 0.0, g / tl.where(d == 0.0, 1.0, d)), g, g
    elif METRIC == "sqeuclidean":
        return 2.0 * g, g, g
    elif METRIC == "dot":
        return g, 0.0 * g, 0.0 * g
    else:
        return g, g, g


@triton.jit
def pull(a, b, alpha, beta, in_row, eps, METRIC: tl.constexpr):
    """The gradient of a pair by its first end. [BM, BD]"""
    if (METRIC == "cosine" or METRIC == "similarity") or METRIC == "dot":
        return alpha[:, None] * b + beta[:, None] * a
    diff = tl.where(in_row, a - b + eps, 0.0)
    if METRIC == "manhattan":
        diff = tl.where(diff > 0.0, 1.0, tl.where(diff < 0.0, -1.0, diff))
    return alpha[:, None] * diff


@triton.jit
def locate(ptr, rows, n, INDEXED: tl.constexpr):
    """The row of one end of pair i (i itself, or the index stored for it), and whether there is one. [BM] each"""
    if INDEXED:
        at = tl.load(ptr + rows, mask=rows < n, other=-1)
        return at, at >= 0
    else:
        return rows, rows < n


@triton.jit
def zeros3(BM: tl.constexpr):
    z = tl.zeros([BM], tl.float32)
    return (z, z, z)


@triton.jit
def triplet_stats(
    a_ptr, b_ptr, c_ptr, ra, rb, rc, ok_a, ok_b, ok_c, D, eps,
    METRIC: tl.constexpr, PAIRS: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Stats of (a, b), (a, c) and (b, c); the last two only if PAIRS reaches them."""
    ab = zeros3(BM)
    ac = zeros3(BM)
    bc = zeros3(BM)
    for first in range(0, D, BD):
        dims = first + tl.arange(0, BD)
        in_row = (dims < D)[None, :]
        a = load_chunk(a_ptr, ra, ok_a, dims, D)
        b = load_chunk(b_ptr, rb, ok_b, dims, D)
        ab = pair_stats(ab, a, b, in_row, eps, METRIC)
        if PAIRS > 1:
            c = load_chunk(c_ptr, rc, ok_c, dims, D)
            ac = pair_stats(ac, a, c, in_row, eps, METRIC)
        if PAIRS > 2:
            bc = pair_stats(bc, b, c, in_row, eps, METRIC)
    return ab, ac, bc


# Whether the second of two rows of indices is aligned depends on the parity of N.
@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["a_index", "b_index", "c_index"])
def row_distances(
    a_ptr, b_ptr, c_ptr, a_index, b_index, c_index, out_ptr, N, D, eps,  # out [PAIRS, N]
    METRIC: tl.constexpr, PAIRS: tl.constexpr, INDEXED: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """d(a, b), d(a, c), d(b, c) of row i; NaN where there is no such row.

    INDEXED: "" for rows i of a, b and c; "others" for a_i with b and c at b_index[i] and c_index[i]; "all" if a is at
    a_index[i] too.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < N
    ra, ok_a = locate(a_index, r, N, INDEXED == "all")
    rb, ok_b = locate(b_index, r, N, INDEXED != "")
    rc, ok_c = locate(c_index, r, N, INDEXED != "")
    ab, ac, bc = triplet_stats(a_ptr, b_ptr, c_ptr, ra, rb, rc, ok_a, ok_b, ok_c, D, eps, METRIC, PAIRS, BM, BD)
    step = N.to(tl.int64)
    tl.store(out_ptr + r, tl.where(ok_b, pair_distance(ab, METRIC), float("nan")), mask=live)
    if PAIRS > 1:
        tl.store(out_ptr + step + r, tl.where(ok_c, pair_distance(ac, METRIC), float("nan")), mask=live)
    if PAIRS > 2:
        tl.store(out_ptr + 2 * step + r, pair_distance(bc, METRIC), mask=live)


@triton.jit(do_not_specialize=["N"])
def row_distances_grad(
    a_ptr, b_ptr, c_ptr, dout_ptr, da_ptr, db_ptr, dc_ptr, N, D, eps,
    METRIC: tl.constexpr, PAIRS: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """da, db, dc of given rows."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < N
    step = N.to(tl.int64)
    ab, ac, bc = triplet_stats(a_ptr, b_ptr, c_ptr, r, r, r, live, live, live, D, eps, METRIC, PAIRS, BM, BD)
    ab_alpha, ab_a, ab_b = pair_slopes(ab, tl.load(dout_ptr + r, mask=live, other=0.0), METRIC)
    if PAIRS > 1:
        ac_alpha, ac_a, ac_c = pair_slopes(ac, tl.load(dout_ptr + step + r, mask=live, other=0.0), METRIC)
    if PAIRS > 2:
        bc_alpha, bc_b, bc_c = pair_slopes(bc, tl.load(dout_ptr + 2 * step + r, mask=live, other=0.0), METRIC)

    for first in range(0, D, BD):
        dims = first + tl.arange(0, BD)
        in_row = (dims < D)[None, :]
        at = r.to(tl.int64)[:, None] * D + dims[None, :]
        a = load_chunk(a_ptr, r, live, dims, D)
        b = load_chunk(b_ptr, r, live, dims, D)
        da = pull(a, b, ab_alpha, ab_a, in_row, eps, METRIC)
        db = pull(b, a, ab_alpha, ab_b, in_row, -eps, METRIC)
        if PAIRS > 1:
            c = load_chunk(c_ptr, r, live, dims, D)
            da += pull(a, c, ac_alpha, ac_a, in_row, eps, METRIC)
            dc = pull(c, a, ac_alpha, ac_c, in_row, -eps, METRIC)
        if PAIRS > 2:
            db += pull(b, c, bc_alpha, bc_b, in_row, eps, METRIC)
            dc += pull(c, b, bc_alpha, bc_c, in_row, -eps, METRIC)
        tl.store(da_ptr + at, da.to(da_ptr.dtype.element_ty), mask=live[:, None] & in_row)
        tl.store(db_ptr + at, db.to(db_ptr.dtype.element_ty), mask=live[:, None] & in_row)
        if PAIRS > 1:
            tl.store(dc_ptr + at, dc.to(dc_ptr.dtype.element_ty), mask=live[:, None] & in_row)


@triton.jit
def store_slopes(ptr, stats, g, k, K, r, live, step, METRIC: tl.constexpr):
    """Of pair k of K of each anchor, from the upstream derivative g: alpha in ptr[k], beta of the other end in
    ptr[K + k] and beta of the anchor in ptr[2 K + k], for `gather_grad`. Returns nothing."""
    alpha, by_anchor, by_other = pair_slopes(stats, g, METRIC)
    tl.store(ptr + k * step + r, alpha, mask=live)
    tl.store(ptr + (K + k) * step + r, by_other, mask=live)
    tl.store(ptr + (2 * K + k) * step + r, by_anchor, mask=live)


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["a_index", "b_index", "c_index"])
def row_slopes(
    a_ptr, b_ptr, c_ptr, a_index, b_index, c_index, dout_ptr, slopes_ptr, N, D,  # slopes [3, PAIRS, N]
    METRIC: tl.constexpr, PAIRS: tl.constexpr, INDEXED: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """What `gather_grad` needs of pairs given by index; INDEXED is as in `row_distances`."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    live = r < N
    step = N.to(tl.int64)
    ra, ok_a = locate(a_index, r, N, INDEXED == "all")
    rb, ok_b = locate(b_index, r, N, True)
    rc, ok_c = locate(c_index, r, N, True)
    ab, ac, _bc = triplet_stats(a_ptr, b_ptr, c_ptr, ra, rb, rc, ok_a, ok_b, ok_c, D, 0.0, METRIC, PAIRS, BM, BD)
    store_slopes(slopes_ptr, ab, tl.load(dout_ptr + r, mask=live & ok_b, other=0.0), 0, PAIRS, r, live, step, METRIC)
    if PAIRS > 1:
        g = tl.load(dout_ptr + step + r, mask=live & ok_c, other=0.0)
        store_slopes(slopes_ptr, ac, g, 1, PAIRS, r, live, step, METRIC)


@triton.jit
def pulled(y, x_ptr, rows, entries, valid, alpha_ptr, beta_ptr, dims, D, METRIC: tl.constexpr):
    """The gradient by row y [BD] of its pairs with rows of x that are valid. [BD]"""
    x = load_chunk(x_ptr, rows, valid, dims, D)
    alpha = tl.load(alpha_ptr + entries, mask=valid, other=0.0)
    beta = tl.load(beta_ptr + entries, mask=valid, other=0.0)
    return tl.sum(pull(y[None, :], x, alpha, beta, (dims < D)[None, :], 0.0, METRIC), 0)


@triton.jit(
    do_not_specialize=["N", "P"],
    do_not_specialize_on_alignment=["index_ptr", "ends_ptr", "alpha_ptr", "beta_ptr", "own_ptr"],
)
def gather_grad(
    x_ptr, y_ptr, index_ptr, entries_ptr, starts_ptr, ends_ptr, alpha_ptr, beta_ptr, own_ptr, factors, out_ptr, N, P, D,
    METRIC: tl.constexpr, OWN: tl.constexpr, OTHERS: tl.constexpr, LISTED: tl.constexpr, SCANNED: tl.constexpr,
    BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dy_j, summed over the pairs that row j is in, times the factors. Grid: (rows of y, chunks of D).

    Pair e has row index[e] of y (-1: none) and row ends[e] of x if LISTED, otherwise e % N, and has alpha[e] and
    beta[e] from `store_slopes`.
    OTHERS: "scan" compares the index of all P pairs with j; "runs" reads `entries`, the pairs in the order of their
    index, in which the run of each row begins at `starts` [M + 1]; "" for none of these pairs.
    OWN: how many of its own mined pairs row j has too, as an anchor: pair j + k N with row index[j + k N] of x.
    factors: pointers to scalars. One program owns one row, so the sum has a fixed order and needs no atomics.
    """
    j = tl.program_id(0)
    dims = tl.program_id(1) * BD + tl.arange(0, BD)
    in_row = dims < D
    out = j.to(tl.int64) * D + dims
    y = tl.load(y_ptr + out, mask=in_row, other=0.0).to(tl.float32)
    acc = tl.zeros([BD], tl.float32)
    if OWN > 0:
        k = tl.arange(0, OWN)
        rows = tl.load(index_ptr + j + k * N)
        acc += pulled(y, x_ptr, rows, j + k * N, rows >= 0, alpha_ptr, own_ptr, dims, D, METRIC)
    if OTHERS == "scan":
        for first in range(0, P, SCANNED):
            at = first + tl.arange(0, SCANNED)
            met = tl.load(index_ptr + at, mask=at < P, other=-1) == j
            if tl.max(met.to(tl.int32), 0) > 0:
                for part in range(first, first + SCANNED, BE):
                    entry = part + tl.arange(0, BE)
                    valid = tl.load(index_ptr + entry, mask=entry < P, other=-1) == j
                    if tl.max(valid.to(tl.int32), 0) > 0:
                        row = tl.load(ends_ptr + entry, mask=valid, other=0) if LISTED else entry % N
                        acc += pulled(y, x_ptr, row, entry, valid, alpha_ptr, beta_ptr, dims, D, METRIC)
    if OTHERS == "runs":
        end = tl.load(starts_ptr + j + 1)
        for first in range(tl.load(starts_ptr + j), end, BE):
            at = first + tl.arange(0, BE)
            valid = at < end
            entry = tl.load(entries_ptr + at, mask=valid, other=0)
            row = tl.load(ends_ptr + entry, mask=valid, other=0) if LISTED else entry % N
            acc += pulled(y, x_ptr, row, entry, valid, alpha_ptr, beta_ptr, dims, D, METRIC)
    for k in tl.static_range(len(factors)):
        acc *= tl.load(factors[k])
    tl.store(out_ptr + out, acc.to(out_ptr.dtype.element_ty), mask=in_row)
