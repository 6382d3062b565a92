"""One pass over the rows before the engine: round to the compute format, and fp32 norms of the rounded values."""

import triton
import triton.language as tl

from .tiles import load_rows, round_tf32


@triton.jit(do_not_specialize=["N"])
def prepare(
    x_ptr, rounded_ptr, norms_ptr, N, D, ROUND: tl.constexpr, INVERSE: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr
):
    """norms[i] = |x_i|^2, or 1 / max(|x_i|, 1e-8) if INVERSE, of the row after rounding. Grid: (row blocks,).

    ROUND: "" leaves the rows alone (16-bit inputs, fp32-grade products); "tf32" and "bf16" also write the rounded rows.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    norms = tl.zeros([BM], tl.float32)
    for first in range(0, D, BD):
        dims = first + tl.arange(0, BD)
        x = load_rows(x_ptr, r, dims, N, D)
        if ROUND != "":
            if ROUND == "tf32":
                x = round_tf32(x.to(tl.float32))
            x = x.to(rounded_ptr.dtype.element_ty)
            at = rounded_ptr + r.to(tl.int64)[:, None] * D + dims[None, :]
            tl.store(at, x, mask=(r < N)[:, None] & (dims < D)[None, :])
        x = x.to(tl.float32)
        norms += tl.sum(x * x, 1)
    if INVERSE:
        norms = 1.0 / tl.sqrt(tl.where(norms < 1e-16, 1e-16, norms))  # NaN stays NaN
    tl.store(norms_ptr + r, norms, mask=r < N)
