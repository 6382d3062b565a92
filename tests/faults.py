"""Faults planted one at a time: which of them do the tests find? `python -m tests.faults [--only WORD] [--workers 2]`.

Each is planted in a copy of the tree, where the tests that ought to find it run until one fails. A fault that all of
them pass is a survivor: it needs a test, or an entry says why no test without a GPU can see it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from fusedloss.tools.console import show

ROOT = Path(__file__).parent.parent
COPIED = ("bench", "docs", "fusedloss", "kernels", "tests", "CONTRIBUTING.md", "README.md", "pyproject.toml")
LIMIT = 900  # seconds: a fault that makes a loop endless is found too


class Fault(NamedTuple):
    file: str
    old: str  # occurs there once
    new: str
    why: str  # what a user would suffer
    tests: str  # the files, and after a colon a word of `pytest -k`
    survives: str = ""  # why no test can see it here

    @property
    def other(self) -> str:
        """A word that deselects tests which need not run: those of the backend without the fault."""
        of = {"kernels/": "blocked", "fusedloss/backends/triton": "blocked", "fusedloss/backends/blocked": "triton"}
        return next((f"not {backend}" for path, backend in of.items() if self.file.startswith(path)), "")


FAULTS = (
    # ----------------------------------------------------------- groups, weights and offsets of one side
    Fault("kernels/walks.py", "    return tl.reshape(behind == first, s.shape)",
          "    return tl.reshape(behind < SIZE, s.shape)", "equal sub-centers of a class count twice",
          "test_classes.py:sub_centers"),
    Fault("kernels/walks.py", "rank = tl.where(s == s, s, float(", "rank = tl.where(s == s, s, -float(",
          "NaN in a sub-center is hidden by the others", "test_classes.py:nan_in_a_sub_center"),
    Fault("kernels/engine.py", "return times(terms, kinds, load(x.weights[0], r, N)[:, None])", "return terms",
          "the gradient by a class has no weight where labels are smoothed", "test_classes.py:weights"),
    Fault("kernels/losses.py", "slope = 4.0 * v / ((1.0 + v) * (1.0 + v))", "slope = 1.0 - t",
          "capped logits have a wrong gradient", "test_classes.py:capped"),
    Fault("fusedloss/ops/folds.py", "batch = batch._replace(y=batch.x, ref_offset=0,",
          "batch = batch._replace(y=batch.x, ref_offset=None,", "a row is its own positive",
          "test_softmax.py test_in_batch.py:by_labels or margin_is"),
    Fault("fusedloss/backends/request.py", 'return (v, None) if self.offsets_of == "rows" else (None, v)',
          "return None, v", "a pair is held to what another anchor's is",
          "test_softmax.py test_in_batch.py:by_labels or margin_is"),
    Fault("fusedloss/backends/blocked/folds.py", "return t.s + v[t.r, None], 1.0", "return t.s + v[t.r, None], 0.0",
          "what an anchor's pairs are held to has no gradient",
          "test_softmax.py test_in_batch.py:by_labels or margin_is"),
    Fault("fusedloss/backends/blocked/tiles.py", "    columns = -(-columns // group) * group\n", "",
          "a tile parts the sub-centers of a class", "test_classes.py:no_tile_parts"),
    Fault("fusedloss/losses/closings.py", "within = (own >= -cos) | (straight == math.inf)", "within = own >= -cos",
          "a negative margin of a row takes the form beyond pi", "test_classes.py:negative_margin"),
    Fault("fusedloss/losses/classes.py", "share * ((whole - of_row) * z.own - z.total)",
          "share * (whole * z.own - z.total)", "smoothing counts the own class among the others",
          "test_classes.py:weights"),
    Fault("fusedloss/losses/classes.py", "+ (0.0 if cut is None else cut)", "",
          "z_loss is that of other logits where all biases have one sign", "test_classes.py:weighted"),
    Fault("fusedloss/losses/towers.py", "y_ids, x, y, offset), offset, shared=1)",
          "y_ids, x, y, offset), None, shared=1)", "with ids a query's own key is lost", "test_softmax.py:ids"),
    Fault("fusedloss/losses/towers.py", "positive = positive if bias is None else positive + bias[own]",
          "positive = positive if bias is None else positive + bias[: own.stop - own.start]",
          "a query's key has the bias of another one", "test_softmax.py:ids"),
    Fault("fusedloss/losses/softmax.py", "against = negative.clamp(min=-1e30)", "against = negative",
          "a batch of one class has NaN gradients by its temperature", "test_softmax.py:without_a_negative"),
    # ------------------------------------------------------------------------------- a tile of scores, and its masks
    Fault("kernels/walks.py", "valid = (c < M)[None, :]", "valid = (c <= M)[None, :]",
          "a column of padding is a row of zeros to every anchor, so losses depend on the batch size",
          "test_in_batch.py:contrastive_is"),
    Fault("kernels/walks.py", "low = tl.where(apart, tl.minimum(tl.maximum(begin // BN * BN, start), whole), start)",
          "low = tl.where(apart, tl.minimum(tl.maximum(tl.cdiv(begin, BN) * BN, start), whole), start)",
          "positives in the first tile that has some are taken for negatives", "test_walks.py:walked_once or exact_as"),
    Fault("kernels/walks.py", "ragged = end - tl.maximum(high, whole)", "ragged = end - whole",
          "the last columns of sorted rows are walked twice", "test_walks.py:walked_once or counted_once"),
    Fault("kernels/walks.py", "skipped = tl.minimum(high, whole) - low", "skipped = high - low",
          "a far tile of sorted rows is left out", "test_walks.py:walked_once or counted_once",
          survives="it is the same: near tiles reach less than a tile beyond the last whole one"),
    Fault("kernels/walks.py", "apart = (last - first == BM - 1) | (not ALL)", "apart = last - first < BM",
          "texts compete with images of zeros", "test_walks.py:walked_once or counted_once"),
    Fault("kernels/walks.py", "end = tl.maximum(tl.where(first < rows, end, start), start)",
          "end = tl.maximum(end, start)", "a program of ignored rows walks all columns", "test_walks.py:walked_once"),
    Fault("kernels/walks.py", "return load(side.order[0], i, n)", "return i",
          "of sides sorted apart the pair left out is another one", "test_walks.py:exact_as or mined"),
    Fault("kernels/walks.py", "if len(ref_offset) > 0:", "if len(ref_offset) > 1:",
          "every row is its own nearest positive", "test_in_batch.py:batch_hard_is"),
    Fault("kernels/walks.py", "(x_places + ref_offset[0])[:, None]", "(x_places + ref_offset[0] + 1)[:, None]",
          "the pair left out is that of a row with the next one", "test_in_batch.py:contrastive_is"),
    Fault("kernels/tiles.py", 'return tl.where(tl.abs(v) < float("inf"), bits.to(tl.float32, bitcast=True), v)',
          "return v", "the tensor core truncates: tf32 products are biased, at twice the error",
          "test_ops.py:matmul_precision"),
    Fault("kernels/ranking.py", "(tl.min(xl) <= tl.max(yl)) & (tl.min(yl) <= tl.max(xl))",
          "(tl.min(xl) < tl.max(yl)) & (tl.min(yl) < tl.max(xl))",
          "positives are lost where a tile has rows of one class",
          "test_ranking.py:one_class or exact"),
    Fault("kernels/tiles.py", "scale = 1.0 / tl.sqrt(tl.where(squares < 1e-16, 1e-16, squares))",
          "scale = 1.0 / tl.sqrt(squares)", "a row of zeros makes the loss NaN", "test_degenerate.py:tiny"),
    Fault("kernels/tiles.py", "scale = 1.0 / tl.sqrt(tl.where(squares < 1e-16, 1e-16, squares))",
          "scale = 1.0 / tl.sqrt(tl.where(squares < 1e-8, 1e-8, squares))",
          "cosines of rows shorter than 1e-4 are wrong", "test_regimes.py:exact_as"),
    Fault("kernels/tiles.py", "squares = tl.where(squares < 1e-16, (squares * scale) * scale, 1.0)",
          "squares = tl.where(squares < 1e-16, 0.0, 1.0)",
          "lifted losses take a row shorter than 1e-8 for the origin", "test_reported.py:clamp"),
    Fault("kernels/tiles.py", "(w * power(15 - higher)[:, None]).to(DTYPE)", "(w * power(15 - top)[:, None]).to(DTYPE)",
          "gradients of float16 rows overflow", "test_reported.py:fp16"),
    Fault("kernels/tiles.py", "acc, row_share = lowered, row_share * lower", "acc, row_share = lowered, row_share",
          "gradients of float16 rows have a wrong share of the rows themselves", "test_reported.py:fp16"),
    Fault("kernels/gradients.py", "dx *= power(top - 15)[:, None]", "dx *= 1.0",
          "gradients of float16 rows are scaled", "test_in_batch.py:float16"),
    Fault("kernels/tiles.py", "tl.where((low > 0.0) & (high <= 2.0 * low), low, 0.0)", "tl.where(low > 0.0, low, 0.0)",
          "rows are moved where that rounds them", "test_reported.py:moved"),
    Fault("kernels/tiles.py", "(x.to(tl.float32) - corner[None, :]).to(x.dtype)", "x",
          "distances of rows far away are noise", "test_reported.py:origin"),
    Fault("fusedloss/backends/moving.py", "if b.ignored is not None:", "if b.ignored == -7777:",
          "an ignored row takes the exactness from distances far away", "test_reported.py:ignored"),
    # ------------------------------------------------------------------------------------------- folds and gradients
    Fault("kernels/gradients.py", "return tl.min((tl.reduce(nearness", "return tl.max((tl.reduce(nearness",
          "a tile costs nothing if one of its rows has no pair within the margin", "test_in_batch.py test_walks.py"),
    Fault("kernels/scores.py", "e - 0.5 * other[1], 0.5 * (own[1] - square)", "e - 0.5 * other[1], own[1] - square",
          "negatives within the margin are taken for apart", "test_in_batch.py test_walks.py"),
    Fault("kernels/engine.py", "negative = negative & (r < rows)[:, None]",
          "negative = negative & (r <= rows)[:, None]", "texts compete with an image of zeros",
          "test_softmax.py test_walks.py:exact_as or counted_once"),
    Fault("kernels/gradients.py", "N * D + place(x, r, N).to(tl.int64)[:, None] * D",
          "N * D + r.to(tl.int64)[:, None] * D", "gradients of sorted rows are those of other rows",
          "test_walks.py:exact_as"),
    Fault("kernels/gradients.py", "g = both_weights(terms[0], row, column, 0, terms[0][1], SIDE)",
          "g = both_weights(terms[0], row, (), 0, terms[0][1], SIDE)",
          "a row has no gradient as the other end of a pair", "test_in_batch.py:contrastive_is"),
    Fault("kernels/folds.py", "state = tl.where(counts, state, 0.0)", "state = 1.0 * state",
          "ignored rows cost something", "test_ignored.py test_walks.py:ignor"),
    Fault("kernels/engine.py", "% chunks * BD", "% chunks * 0",
          "the gradient of wide rows lacks most dimensions", "test_in_batch.py:contrastive_is"),
    # ---------------------------------------------------------------------------------- panels of rows too wide
    Fault("kernels/panels.py", "live = (r < rows)[:, None]", "live = (r <= rows)[:, None]",
          "an ignored row pulls the references", "test_panels.py test_ignored.py test_in_batch.py:contrastive_is"),
    Fault("kernels/panels.py", "v = scaled(w, of_y.largest, c, M, 0)", "v = scaled(w, of_x.largest, r, N, 1)",
          "gradients of float16 references are scaled by other rows", "test_panels.py:float16 or exact_as"),
    Fault("kernels/panels.py", "share += tl.sum(rows * load_rows(", "share += 0.0 * tl.sum(rows * load_rows(",
          "the cosine's gradient of wide rows is not tangential", "test_panels.py test_in_batch.py:contrastive_is"),
    Fault("kernels/panels.py", "by_offset += tl.sum(g * shares[0], 1)", "by_offset += tl.sum(w * shares[0], 1)",
          "offsets have the gradient of the scores' sums", "test_panels.py:exact_as"),
    Fault("kernels/panels.py", "out = out_ptr + place(x, r, N).to(tl.int64)[:, None] * D",
          "out = out_ptr + r.to(tl.int64)[:, None] * D", "gradients of sorted wide rows are those of other rows",
          "test_panels.py:exact_as"),
    Fault("kernels/tiles.py", "x = tl.where((r < tl.load(given.counted[0]))[:, None], x, 0.0).to(x.dtype)", "pass",
          "NaN in an ignored row is in every gradient of wide rows", "test_panels.py:ignored"),
    Fault("fusedloss/backends/triton/panels.py", "new = torch.zeros if r.x.rows.counted else torch.empty",
          "new = torch.empty", "memory that nobody wrote is in gradients", "test_panels.py:ignored"),
    Fault("fusedloss/backends/triton/panels.py", "torch.maximum(so_far, part.amax(0), out=so_far)",
          "so_far.copy_(part.amax(0))", "float16 weights of an earlier panel overflow", "test_panels.py:float16"),
    Fault("fusedloss/backends/triton/panels.py", "total[..., slice(*span)] += part.sum(0)",
          "total[..., slice(*span)] = part.sum(0)", "the share of rows has only their last panel",
          "test_panels.py:exact_as"),
    Fault("kernels/engine.py",
          "out = states_ptr + tl.program_id(1).to(tl.int64) * (len(pos.kinds) + len(neg.kinds)) * N",
          "out = states_ptr + tl.program_id(1).to(tl.int64) * 0 * N", "all splits but one are forgotten",
          "test_in_batch.py:contrastive_is"),
    Fault("kernels/attention.py", "scaled(acc, lower), row_share * lower", "scaled(acc, lower), row_share",
          "a query's gradient has a wrong share of the query itself", "test_emission_of_queries.py:exact"),
    Fault("kernels/attention.py", "tl.where(mass == 0.0, 1.0, mass)", "mass",
          "a query without negatives has NaN for its gradient", "test_emission_of_queries.py:any_number"),
    Fault("kernels/attention.py", "(), coarse if part == 0 else pull - coarse,", "(), coarse * (1 - part),",
          "all queries are pulled too little, by what rounding cuts off", "test_emission_of_queries.py:exact"),
    Fault("fusedloss/backends/triton/closings.py", "saved.x.restore(by_positive, 0)[:, None]", "by_positive[:, None]",
          "queries whose labels do not ascend have the slopes of others", "test_emission_of_queries.py:any_number"),
    Fault("fusedloss/backends/triton/closings.py", "wants.numbers and not (wants.y or wants.y_offsets)", "False",
          "with constant keys a learned temperature takes a pass more", "test_emission_of_queries.py:where"),
    Fault("kernels/engine.py", "tl.where(v < w, apart, 1.0) / (1.0 + apart)", "1.0 / (1.0 + apart)",
          "lifted structure pushes the negatives of the wrong end", "test_structured.py:exact_as"),
    Fault("kernels/engine.py", "tl.where(live, by_down[p] * of_numbers", "tl.where(live, by_up[p] * of_numbers",
          "a learned margin of negatives gets the gradient of that of positives", "test_in_batch.py:contrastive_is"),
    Fault("kernels/gradients.py", "dx -= row_share[:, None] * f * load_rows(", "dx -= row_share[:, None] * load_rows(",
          "the cosine's gradient is not tangential: rows grow", "test_in_batch.py:contrastive_is"),
    Fault("kernels/folds.py", "mask = (p < P)[:, None] & inside[None, :]",
          "mask = (p < P - 1)[:, None] & inside[None, :]",
          "the last split is forgotten", "test_in_batch.py:contrastive_is"),
    Fault("kernels/folds.py", "dstate *= tl.exp(-rest.to(tl.float32))", "dstate *= 1.0",
          "weights of logits near 10,000 do not add up to 1", "test_softmax.py:ten_thousand or exact_as"),
    Fault("kernels/folds.py", "mass = mass * exp(value - base) + ", "mass = mass + ",
          "log sum exp is wrong once a later tile has a larger logit", "test_softmax.py:exact_as"),
    Fault("kernels/folds.py", 'base = tl.where(best == float("-inf"), 0.0, best)', "base = best",
          "an anchor without a negative makes the loss NaN", "test_softmax.py test_structured.py:supcon or exact_as"),
    Fault("kernels/losses.py", "tl.where(w == 0.0, 0.0, w * s)", "w * s",
          "compiled, terms are rounded in another way than in their state", "test_generated_code.py:exponential"),
    Fault("kernels/folds.py", "tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)", "tl.maximum(a, b)",
          "compiled, a maximum drops NaN", "test_generated_code.py:nan"),
    # ----------------------------------------------------------------------------------------- losses on a tile
    Fault("kernels/losses.py", "return (0.5 * z * z, z, minus(z))", "return (z * z, z, minus(z))",
          "the contrastive loss is twice its gradient's", "test_in_batch.py:contrastive_is"),
    Fault("kernels/losses.py", "return (z, active, minus(active)), (active,)", "return (z, active, active), (active,)",
          "a learned margin of positives grows without end", "test_in_batch.py:contrastive_is"),
    Fault("kernels/losses.py", "w = gamma * relu(s + margin)", "w = gamma * relu(s - margin)",
          "circle loss forgets the negatives below the margin", "test_structured.py:exact_as"),
    Fault("kernels/losses.py", "return tl.minimum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)",
          "return tl.where(z < 0.0, z, 0.0)", "rows of NaN train on, unseen", "test_degenerate.py:not_finite"),
    Fault("kernels/losses.py", "term = (scale * s + bias, scale, s, 1.0)",
          "term = (scale * s + bias, scale, 0.0 * s, 1.0)",
          "a learned temperature stays as it is", "test_softmax.py:exact_as"),
    Fault("kernels/scores.py", "tl.where(own[1] < 1.0, 0.0, own[0] * own[0])", "own[0] * own[0]",
          "rows of zeros get a gradient beyond all bounds",
          "test_degenerate.py test_structured.py:zero or tiny"),
    Fault("kernels/scores.py", "tl.where(sq >= 1.2e-38, tl.rsqrt(sq), 0.0)", "tl.where(sq >= 0.0, tl.rsqrt(sq), 0.0)",
          "two equal rows make the gradient NaN", "test_degenerate.py:distance_zero or equal_zero"),
    Fault("kernels/scores.py", "2.0 * e, 0.0), -2.0, 1.0, 1.0", "2.0 * e, 0.0), -1.0, 1.0, 1.0", "half the gradient",
          "test_in_batch.py:contrastive_is"),
    # --------------------------------------------------------------------------------------- given and mined pairs
    Fault("kernels/rows.py", "diff = tl.where(in_row, a - b + eps, 0.0)\n        size",
          "diff = tl.where(in_row, a - b, 0.0)\n        size", "not torch's triplet loss", "test_given.py:triplet"),
    Fault("kernels/rows.py", "diff = tl.where(in_row, a - b + eps, 0.0)\n        size",
          "diff = a - b + eps\n        size",
          "eps counts once more for every dimension of padding", "test_given.py:triplet"),
    Fault("kernels/rows.py", "db = pull(b, a, ab_alpha, ab_b, in_row, -eps, METRIC)",
          "db = pull(b, a, ab_alpha, ab_b, in_row, eps, METRIC)", "positives of equal rows are pushed the wrong way",
          "test_given.py:triplet"),
    Fault("kernels/rows.py", "return 2.0 * g, g, g", "return g, g, g", "half the gradient of center loss",
          "test_given.py test_classes.py:contrastive_is or centers"),
    Fault("kernels/rows.py", "dc += pull(c, b, bc_alpha, bc_c, in_row, -eps, METRIC)", "dc += 0.0 * c",
          "swapped triplets push one end alone", "test_given.py:triplet"),
    Fault("kernels/rows.py", "by_a = tl.where(a < 1e-16, 0.0, g * cos * (ra * ra))", "by_a = g * cos * (ra * ra)",
          "rows of zeros get a gradient beyond all bounds", "test_degenerate.py test_regimes.py:tiny or exact_as"),
    Fault("kernels/mining.py", "better = (value > best) | ((value == best) & (at < index))", "better = value > best",
          "ties go to whatever comes first in the order of labels", "test_walks.py:mined"),
    Fault("kernels/mining.py", "tl.where(t == value[:, None], places, NO_PLACE)",
          "tl.where(t >= value[:, None], NO_PLACE - places, NO_PLACE)", "no row is where it is said to be",
          "test_in_batch.py:brute"),
    Fault("kernels/mining.py", 'return tl.where(t != t, float("inf"), larger(t, -3.4e38))',
          "return tl.where(t >= -3.4e38, t, -3.4e38)",
          "rows of NaN are never mined, so they do not show", "test_reported.py:nan"),
    Fault("kernels/mining.py", "neg = neg & ~(s <= floor)", "neg = neg & ~(s < floor)",
          "a negative as far as the positive is taken for semi-hard", "test_in_batch.py:brute"),
    Fault("kernels/mining.py", "tl.where((places >= 0) & (t == value[None, :]), places", "tl.where(places >= 0, places",
          "the best of a worse split is mined", "test_in_batch.py:brute"),
    Fault("fusedloss/backends/triton/sides.py", "labels = labels - ignored + LAST", "labels = labels - ignored",
          "ignored rows are walked and others are not", "test_walks.py test_ignored.py:ignor"),
    # ----------------------------------------------------------- compiled kernels that are kept
    Fault("fusedloss/backends/triton/kept.py", "return (kernel.fn, device, ", "return (kernel.fn, ",
          "a second GPU is given the binary of the first", "test_kept.py:selects"),
    Fault("fusedloss/backends/triton/kept.py", "specialize(backend, args, False, True, True)",
          "specialize(backend, args, False, True, True)[0]", "a kernel takes rows for aligned that are not",
          "test_kept.py:selects"),
    Fault("fusedloss/backends/triton/kept.py", "*options, *options.values())", "*options)",
          "a loss is computed by the kernel of another one", "test_kept.py:selects"),
    Fault("fusedloss/backends/triton/kept.py", "options.get(parameter.name, parameter.default) for parameter in rest",
          "value for value in options.values()", "a launcher is given too many arguments", "test_kept.py:selects"),
    Fault("fusedloss/backends/triton/kept.py", "        or calls(runtime.launch_enter_hook)\n", "",
          "a profiler does not see the second launch of a kernel", "test_kept.py:watched"),
    Fault("fusedloss/backends/triton/kept.py", "if type(compiled) is triton.compiler.CompiledKernel:", "if True:",
          "a kernel that is compiled elsewhere cannot be launched", "test_kept.py:watched"),
    Fault("kernels/rows.py", "if LISTED else entry % N\n            acc", "if False else entry % N\n            acc",
          "listed pairs pull rows towards others than theirs", "test_listed.py:exact_as"),
    Fault("kernels/rows.py", "    tl.store(ptr + (K + k) * step + r, by_other, mask=live)",
          "    tl.store(ptr + (K + k) * step + r, by_anchor, mask=live)", "pairs turn rows by each other's lengths",
          "test_listed.py:exact_as"),
    Fault("fusedloss/backends/triton/rows.py", "index.flatten().sort(stable=True)",
          "index.flatten().sort(stable=True, descending=True)", "rows gather from pairs of others",
          "test_listed.py:exact_as"),
    Fault("kernels/rows.py", "in range(first, first + SCANNED, BE):", "in range(first, first + BE, BE):",
          "of the pairs that a row is in some are not found", "test_hinges.py:composed"),
    Fault("kernels/rows.py", "acc *= tl.load(factors[k])", "acc *= 1.0",
          "the gradient is that of a sum, not of the mean", "test_hinges.py:composed"),
    Fault("kernels/hinges.py", "return tl.where(z <= 0.0, 0.0, z), tl.where(z <= 0.0, 0.0, 1.0)",
          "return tl.where(z > 0.0, z, 0.0), tl.where(z > 0.0, 1.0, 0.0)", "a row of NaN costs nothing",
          "test_hinges.py:autograd"),
    Fault("kernels/hinges.py", "counts & (term > 0.0) if ACTIVE else counts", "counts",
          "the mean over active triplets is over all", "test_hinges.py:composed"),
    Fault("kernels/hinges.py", "tl.where((count == 0.0) | (not MEAN), 1.0, count)", "tl.where(not MEAN, 1.0, count)",
          "a batch without a triplet has the loss NaN", "test_hinges.py:without"),
    Fault("kernels/mining.py", "        neg = tl.where(pos >= 0, neg, -1)", "        neg = neg",
          "an anchor without a positive has a semi-hard negative", "test_in_batch.py:brute"),
    Fault("kernels/mining.py", "floor = POSITIVE * highest(", "floor = 1.0 * highest(",
          "semi-hard negatives of the easiest positives are any", "test_in_batch.py:brute"),
    Fault("fusedloss/backends/blocked/rows.py", "(of.anchors[n],), di, accumulate=True)", "(of.anchors[n],), di)",
          "of the pairs of an anchor in a block one counts", "test_listed.py:exact_as"),
    Fault("fusedloss/backends/blocked/rows.py", "if y is None or g.want_y:", "if g.want_y:",
          "listed rows of the batch push nothing", "test_listed.py:exact_as"),
    # ----------------------------------------------------------------------------------------------------- triplets
    Fault("kernels/triplets.py", 's = tl.where(c[None, :] == ref_column[:, None], float("-inf"), s)', "s = 1.0 * s",
          "every anchor is a positive of itself", "test_triplets.py:exact_as"),
    Fault("kernels/ranking.py", "(columns < stop) & (columns != ref_column)", "(columns < stop)",
          "every anchor is a positive of itself", "test_ranking.py:exact_as"),
    Fault("kernels/triplets.py", "chosen = ~(gap < 0.0)", "chosen = ~(gap <= 0.0)", "ties are no hard triplets",
          "test_triplets.py:brute"),
    Fault("kernels/triplets.py", "chosen = ~(gap >= 0.0) & ~(gap < -margin)",
          "chosen = ~(gap >= 0.0) & ~(gap <= -margin)",
          "the mean is over other triplets than the docstring says", "test_triplets.py:brute"),
    Fault("kernels/triplets.py", "at = begin + (turns - 1 - turn) * width", "at = begin + turn * width",
          "the positives kept are not those that the backward takes them for", "test_triplets.py:not_kept"),
    Fault("kernels/triplets.py", "before = (other > key[:, None])", "before = (other < key[:, None])",
          "a tile is left before the thresholds that it reaches", "test_triplets.py:exact_as or brute"),
    Fault("kernels/triplets.py", "may = ~(gap < -margin)", "may = ~(gap < 0.0)",
          "a tile is left before all its semi-hard triplets are counted", "test_triplets.py:exact_as or brute"),
    Fault("kernels/semihard.py", "beyond = tl.where(s <= t[:, None]", "beyond = tl.where(s < t[:, None]",
          "a negative as far as the positive is taken for semi-hard", "test_triplets.py:brute"),
    Fault("kernels/semihard.py", "((other == near) & (candidate < negative))", "(other == near)",
          "of equally near negatives the last split's is taken", "test_triplets.py:brute or semihard_triplets_are"),
    Fault("kernels/semihard.py", "positives * tl.minimum(columns - (stop - begin), 1)",
          "positives * (columns - (stop - begin))",
          "the mean is over all triplets, not over the pairs", "test_triplets.py:semihard_triplets_are"),
    Fault("kernels/triplet_grads.py", "for part in range(1, parts):", "for part in range(2, parts):",
          "the slopes of the second split are forgotten", "test_triplets.py:exact_as"),
    Fault("kernels/triplet_tails.py", "start, stop = load(ranges.start, a, N) + first, load(ranges.stop, a, N)",
          "start, stop = load(ranges.start, a, N), load(ranges.stop, a, N)",
          "in large classes, positives push away negatives twice", "test_triplets.py:not_kept or few_or_many"),
    Fault("kernels/triplet_tails.py", "for split in range(1, splits):", "for split in range(2, splits):",
          "the gradient of the second split is forgotten", "test_triplets.py:exact_as"),
    Fault("kernels/ranking.py", "among = mask & (c[None, :] != (at + k)[:, None])", "among = mask",
          "a positive is ranked behind itself", "test_ranking.py:exact_as"),
    Fault("kernels/ranking.py", "PIECE(1.0 + others[k], negatives[k], numbers)",
          "PIECE(others[k], negatives[k], numbers)", "ranks start at 0", "test_ranking.py:exact_as"),
    Fault("kernels/ranking.py", "tl.store(at + 3 * step, tl.where(present, pull, 0.0), mask=kept)",
          "tl.store(at + 3 * step, tl.where(present, -pull, 0.0), mask=kept)",
          "positives are pushed away from their anchor", "test_ranking.py:exact_as"),
    Fault("fusedloss/backends/blocked/ranking.py", "            h[:, k] = 0.0\n", "            pass\n",
          "a positive is ranked behind itself", "test_ranking.py:exact_as"),
    Fault("kernels/losses.py", "slope = minus(logistic_slope(z) / numbers[0])", "slope = minus(logistic_slope(z))",
          "the gradient of recall at k does not know its temperature", "test_ranking.py:recall"),
    Fault("fusedloss/backends/triton/sorted.py", "[xs.order + offset]", "[xs.order]",
          "of a batch among its references the wrong pair is left out", "test_triplets.py:exact_as"),
    # ------------------------------------------------------------------------------------- host code of the kernels
    Fault("fusedloss/backends/triton/folds.py", "back = None if offset is None else -offset", "back = offset",
          "with many columns the wrong pair is left out",
          "test_survivors.py:columns_too"),
    Fault("kernels/engine.py", "return (0 - ref_offset[0],)", "return (ref_offset[0],)",
          "references get a gradient from the pairs left out", "test_in_batch.py:contrastive_is"),
    Fault("fusedloss/backends/request.py", "States(*(t[:, N:] for t in both))",
          "States(both[0][:, :N], both[1][:, N:])",
          "texts are weighed by the states of the images", "test_softmax.py:exact_as"),
    Fault("fusedloss/backends/triton/closings.py", "(1.0, 0.5 if b.y is None else 1.0)", "(1.0, 1.0)",
          "a learned number gets twice its gradient", "test_softmax.py"),
    Fault("fusedloss/backends/triton/closings.py", "scalars(times * share, share)", "scalars(share, share)",
          "rows are pulled as anchors only", "test_in_batch.py:contrastive_is"),
    # --------------------------------------------------------------------------------------------------- given logits
    Fault("kernels/logits.py", "folds = fold_tile(folds, ((z,),), inside & ~own, False, 1)",
          "folds = fold_tile(folds, ((z,),), inside, False, 1)", "the own class competes with itself",
          "test_logits.py:cross_entropy_is_as"),
    Fault("kernels/logits.py", 'lse = tl.where(lse == float("-inf"), float("inf"), lse)', "lse = lse",
          "one class alone makes the gradient NaN", "test_logits.py:infinity or share or finite"),
    Fault("kernels/logits.py", "(1.0 - t) * p - pos_weight * t * q", "(1.0 - t) * p - t * q",
          "the weight of positives changes the value alone", "test_logits.py:binary"),
    Fault("kernels/logits.py", "tl.where(alpha < 0.0, 1.0, alpha * t", "tl.where(alpha < -1.0, 1.0, alpha * t",
          "alpha = -1 is no longer none", "test_logits.py:sigmoid_focal"),
    Fault("fusedloss/backends/triton/logits.py", "smoothing = (1 - r.smoothing, r.smoothing / max(C, 1))",
          "smoothing = (1 - r.smoothing, r.smoothing)", "smoothed probabilities add up to more than 1",
          "test_logits.py:cross_entropy"),
    # ------------------------------------------------------------------------------------------------ the CPU backend
    Fault("fusedloss/backends/blocked/tiles.py", "pos.fill_diagonal_(False)", "pass", "every row is its own positive",
          "test_in_batch.py:contrastive_is or batch_hard_is"),
    Fault("fusedloss/backends/blocked/tiles.py", "b.ref_offset : b.ref_offset + len(b.x)",
          "b.ref_offset - 1 : b.ref_offset - 1 + len(b.x)", "of references the wrong pair is left out",
          "test_in_batch.py:contrastive_is"),
    Fault("fusedloss/backends/blocked/folds.py", "0.5 * once if t.diagonal else once", "once",
          "a learned number gets part of its gradient twice", "test_in_batch.py test_softmax.py:exact_as"),
    Fault("fusedloss/backends/blocked/folds.py", "gradient * (1 - share)).sum(0)", "gradient * share).sum(0)",
          "lifted structure pushes the negatives of the wrong end", "test_structured.py:exact_as"),
    Fault("fusedloss/backends/blocked/mining.py", "better |= value.isnan() & ~best.isnan()", "pass",
          "rows of NaN are never mined, so they do not show", "test_degenerate.py test_regimes.py:finite or plausible"),
    Fault("fusedloss/backends/blocked/mining.py", "beyond = (t.s <= pos_best[r, None])",
          "beyond = (t.s < pos_best[r, None])",
          "a negative as far as the positive is taken for semi-hard", "test_in_batch.py:brute"),
    Fault("fusedloss/backends/blocked/triplets.py", "near - above(p.s, t.s, strictly=False)",
          "near - above(p.s, t.s, strictly=True)", "ties are semi-hard as well as hard", "test_triplets.py:brute"),
    Fault("fusedloss/backends/blocked/scores.py", ".where(scale < 9.9e7, d.new_zeros(()))", "",
          "rows of zeros get a gradient beyond all bounds", "test_degenerate.py test_structured.py:zero or tiny"),
    Fault("fusedloss/backends/blocked/rows.py", "nan_to_num_(nan=float(\"nan\"), posinf=0.0)",
          "nan_to_num_(nan=0.0, posinf=0.0)",
          "the gradient of rows of NaN is 0", "test_regimes.py:plausible",
          survives="the loss is NaN, and the reference's gradient by the other entries of the row is finite too"),
    # ------------------------------------------------------------------------- from losses to a backend, and formulas
    Fault("fusedloss/ops/folds.py", 'zip(("x", "y", "numbers", "offsets")', 'zip(("y", "x", "numbers", "offsets")',
          "the references get the gradient of the batch", "test_in_batch.py:contrastive_is"),
    Fault("fusedloss/ops/rows.py", 'return {"a": da, "b": db, "c": dc}', 'return {"a": da, "b": dc, "c": db}',
          "positives are pushed and negatives pulled", "test_given.py:triplet"),
    Fault("fusedloss/backends/triplet_requests.py", "(dsums * states[2])", "(dsums * states[1])",
          "a learned margin gets the gradient of inactive triplets", "test_triplets.py:exact_as"),
    Fault("fusedloss/checks/batches.py", "x_labels, y_labels = x_labels.long(), y_labels.long()",
          "x_labels, y_labels = x_labels.int(), y_labels.int()", "labels 2^32 apart are one class",
          "test_degenerate.py:narrow"),
    Fault("fusedloss/checks/targets.py", "inside = (given >= 0) & (given < C)", "inside = (given >= 0) & (given <= C)",
          "a class that does not exist reads what lies behind the weights",
          "test_classes.py test_logits.py:out_of_range"),
    Fault("fusedloss/memory_bank.py", "% self.size", "% (self.size - 1)", "the oldest row stays for ever",
          "test_memory_bank.py:last_rows or queue"),
    Fault("fusedloss/losses/towers.py", "lowest = torch.finfo(a.dtype).min / 2", "lowest = -1e4",
          "a queue far from every query still costs", "test_softmax.py:queue or info_nce"),
    Fault("fusedloss/losses/towers.py", "(2, N)).mean(0)", "(2, N)).sum(0)",
          "twice the loss of open_clip", "test_softmax.py:towers"),
    Fault("fusedloss/losses/closings.py", "torch.where(count > 1, positive - total",
          "torch.where(count > 0, positive - total",
          "one positive: the rounding of a logit is in the loss", "test_softmax.py:supcon or unit_pairs or saturated"),
    Fault("fusedloss/losses/closings.py", "spread + softplus(negative - positive), 0.0), count > 0",
          "spread + softplus(negative - positive), 0.0), count >= 0", "the mean counts anchors without a positive",
          "test_softmax.py:supcon"),
    Fault("fusedloss/losses/reduce.py", "threshold=40.0", "threshold=20.0", "float64 losses have ten digits",
          "test_survivors.py:certain_mistake"),
    Fault("fusedloss/losses/closings.py", "own * cos - sine * sin", "own * cos + sine * sin",
          "ArcFace's margin helps", "test_classes.py:sphere"),
    Fault("fusedloss/losses/classes.py", "scale * (z.own - _margins", "scale * (z.own + _margins",
          "CosFace's margin helps", "test_classes.py:sphere"),
    Fault("fusedloss/losses/closings.py", "within = (own >= -cos)", "within = (own >= cos)",
          "most rows have no angular margin", "test_classes.py:sphere"),
    Fault("fusedloss/losses/centers.py", "reduce_rows(d / 2,", "reduce_rows(d,", "twice the center loss",
          "test_classes.py:centers"),
    Fault("fusedloss/losses/reduce.py", "terms.detach() > 0", "terms.detach() >= 0",
          "the mean over active terms counts them all", "test_given.py:active"),
    Fault("fusedloss/losses/pairs.py", "torch.searchsorted(target, target)",
          "torch.searchsorted(target, target, right=True) - 1", "pairs with equal targets are compared",
          "test_given.py:cosent"),
    Fault("fusedloss/losses/pairs.py", "[(lower - 1).clamp(min=0)]", "[lower.clamp(max=lower.shape[0] - 1)]",
          "a pair is compared with itself", "test_given.py:cosent"),
    Fault("fusedloss/losses/pairs.py", "(below - z).masked_fill(lower == 0, lowest)", "(below - z)",
          "the lowest pairs are compared with one of themselves", "test_given.py:cosent"),
    Fault("fusedloss/losses/pairs.py", "masked_fill(lower == 0, lowest)", "masked_fill(lower == 0, -torch.inf)",
          "without two targets that differ a gradient on the way is NaN", "test_given.py:cosent"),
    Fault("fusedloss/losses/pairs.py", ".masked_fill(target.isnan(), torch.nan)", "",
          "a target that is NaN is the highest", "test_given.py:cosent"),
    Fault("fusedloss/losses/triplets.py", "reduce(terms, reduction, counts.sum(), batch.x)",
          "reduce(terms, reduction, batch.x.shape[0], batch.x)", "the mean counts anchors without a triplet",
          "test_in_batch.py:batch_hard_is"),
    # ------------------------------------------------------------------------------------------- groups of processes
    Fault("fusedloss/ops/shared.py", "by_numbers = by_numbers / 2", "by_numbers = by_numbers / 1",
          "a temperature gets twice its gradient over a group", "test_group_loss.py"),
    Fault("fusedloss/backends/blocked/folds.py", "0.5 if b.y is None else 1.0)", "1.0)",
          "the same in a ring", "test_group_loss.py"),
    Fault("fusedloss/ops/shared.py", "place = None if b.ref_offset is None else group.first(self.columns)",
          "place = b.ref_offset", "over a group rows are their own positives", "test_group_loss.py"),
    Fault("fusedloss/ops/shared.py", "y_labels=labels, ref_offset=group.first(rows), y_sorted",
          "y_labels=labels, ref_offset=0, y_sorted", "triplets of a group have other anchors left out",
          "test_group_loss.py"),
    Fault("fusedloss/ops/shared.py", "there = index + first", "there = index",
          "mined rows are taken from the own process", "test_group_loss.py"),
    Fault("fusedloss/ops/shared.py", "(cost == best) & (there < number)", "(cost == best) & (there > number)",
          "of equally far rows of two processes the last is mined", "test_group_loss.py"),
    Fault("fusedloss/ops/shared.py", "cost = cost.masked_fill(cost.isnan(), -torch.inf)",
          "cost = cost.nan_to_num(nan=torch.inf)", "NaN in a row of another process is hidden", "test_group_use.py"),
    Fault("fusedloss/ops/shared.py", "of_x, of_y = (t is not None and want_offsets for t in f.split_offsets)",
          "of_x, of_y = (t is not None and want_offsets for t in f.split_offsets[::-1])",
          "a key's bias gets no gradient over a group", "test_group_loss.py"),
    Fault("fusedloss/backends/blocked/tiles.py", "return x._replace(ref_column=None), found", "return x, found",
          "rows of other processes are left out", "test_group_loss.py"),
    Fault("fusedloss/groups.py", "return ctx.group.sum(d) / ctx.group.world, None", "return d, None",
          "learned options drift apart without DDP", "test_group_loss.py"),
    Fault("fusedloss/groups.py", "return ctx.group.sum(d), None", "return d * ctx.group.world, None",
          "losses that ranks weigh differently have a wrong gradient", "test_group_use.py"),
    Fault("fusedloss/groups.py", "return d / ctx.world, None", "return d, None",
          "the learning rate of sharded classes grows with the processes", "test_sharded.py"),
    Fault("fusedloss/losses/reduce.py", "others = counted if group is None else group.sum(counted)", "others = counted",
          "with ignored rows the mean counts the pairs of one process", "test_group_loss.py"),
    Fault("fusedloss/checks/batches.py", "and groups.current() is None:", ":",
          "a process without ignored rows compares with those of others", "test_group_loss.py"),
    Fault("fusedloss/losses/softmax.py", "own = 2 * groups.first_row()", "own = groups.first_row()",
          "views of two processes are taken for one sample", "test_group_loss.py"),
    Fault("fusedloss/losses/classified.py", "high = high.where(high.isfinite(), 0.0)",
          "high = high.where(high < 0, 0.0)", "logits of sharded classes overflow", "test_sharded.py"),
    Fault("fusedloss/losses/classes.py", "low, high = group.most(torch.stack([-low, high])).unbind()",
          "low, high = torch.stack([-low, high]).unbind()", "every shard takes another constant from its biases",
          "test_sharded.py"),
    Fault("fusedloss/distributed/shard_module.py", "here = at.where((at >= 0) & (at < own), own)",
          "here = torch.full_like(at, own)", "a sampled step leaves out the classes of its rows", "test_sharded.py"),
    Fault("fusedloss/distributed/agreement.py", "if not group.asked:", "if False:",
          "processes wait for one that has raised", "test_group_use.py test_sharded.py"),
    Fault("fusedloss/memory_bank.py", "options[\"ref_offset\"] = groups.first_key()", "options[\"ref_offset\"] = 0",
          "rows of a bank over processes are their own positives", "test_bank_over_group.py"),
    Fault("fusedloss/memory_bank.py", "every or map(of_all, own)))", "own))",
          "every process keeps rows of its own", "test_bank_over_group.py"),
    # ------------------------------------------------------------------------------------------------------ drop-ins
    Fault("fusedloss/backends/blocked/listed.py", "(squares < LOST * lengths)", "(squares < 0 * lengths)",
          "of many listed pairs small distances are rounding", "test_listed.py:many_pairs or distance_zero"),
    Fault("fusedloss/backends/blocked/listed.py", "along = ((d * unit)", "along = (0 * (d * unit)",
          "many listed pairs stretch rows", "test_listed.py:many_pairs"),
    Fault("fusedloss/compat/pytorch_metric_learning/compared.py", "y.roll(-first, 0), y_labels.roll(-first)",
          "y.roll(first, 0), y_labels.roll(first)", "a memory that begins anew pairs rows with themselves",
          "test_compat_pytorch_metric_learning.py:memory"),
    Fault("fusedloss/compat/pytorch_metric_learning/compared.py",
          "return high - low - int(self.batch.ref_offset is not None)", "return high - low",
          "a row counts as a positive of itself", "test_compat_pytorch_metric_learning.py:random"),
    Fault("fusedloss/compat/pytorch_metric_learning/compared.py", "(a * c.rows + b).unique()",
          "(a * c.rows + b).sort().values", "a pair that a miner lists twice counts twice",
          "test_compat_pytorch_metric_learning.py:random"),
    Fault("fusedloss/compat/pytorch_metric_learning/fused.py", "own = 0 if ref_labels is labels else None",
          "own = None", "a row is a pair of itself", "test_compat_pytorch_metric_learning.py:random"),
    Fault("fusedloss/compat/pytorch_metric_learning/pair_losses.py",
          "enough = (given.counts[0] > 1) | (given.counts[1] > 1)",
          "enough = (given.counts[0] > 0) | (given.counts[1] > 0)", "one pair costs something",
          "test_compat_pytorch_metric_learning.py:random or zero_rules"),
    Fault("fusedloss/compat/pytorch_metric_learning/triplet_losses.py", "n[order[(ends - counts)[a1[pair]] + place]]",
          "n[order[place]]", "listed pairs become triplets of another anchor's negatives",
          "test_compat_pytorch_metric_learning.py:random"),
    Fault("fusedloss/compat/pytorch_metric_learning/class_losses.py", "elements(losses * weights)",
          "elements(losses)", "rows that a miner leaves out count", "test_compat_pytorch_metric_learning.py:random"),
    Fault("fusedloss/compat/pytorch_metric_learning/reducing.py", "reduce(terms * weights, ", "reduce(terms, ",
          "weights of classes weigh nothing", "test_compat_pytorch_metric_learning.py:random"),
    Fault("fusedloss/compat/pytorch_metric_learning/miners.py", "same[own, own + first] = False",
          "same[own, own] = False", "of later rows a miner lists each with itself",
          "test_compat_pytorch_metric_learning.py:miners"),
    Fault("fusedloss/compat/sentence_transformers/losses/ranking.py",
          "log_sum.detach().lerp(log_sum, self.scale / (self.scale + hardness))", "log_sum",
          "hardness has a gradient", "test_compat_sentence_transformers.py:hardness"),
    Fault("fusedloss/compat/open_clip/loss.py", "all_text, loss.rank * len(image))", "all_text, 0)",
          "every process's images belong to the first one's texts", "test_compat_open_clip.py:group or horovod"),
    Fault("fusedloss/compat/lightly/loss/ntx_ent_loss.py", "if x0.requires_grad:", "if True:",
          "an evaluation fills the memory bank", "test_compat_lightly.py:bank"),
)  # fmt: skip


class Outcome(NamedTuple):
    fault: Fault
    status: str  # caught, survived, explained, or "broken": no test was selected, or none could be collected
    seconds: float
    by: str  # the test that failed


@contextmanager
def copies(count: int) -> Iterator[SimpleQueue[Path]]:
    """A pool of copies of the tree; each is taken, used and put back."""
    with tempfile.TemporaryDirectory() as folder:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(count):
            root = Path(folder, str(number))
            root.mkdir()
            for one in map(ROOT.joinpath, COPIED):
                if one.is_file():
                    shutil.copy(one, root)
                else:
                    shutil.copytree(one, root / one.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            free.put(root)
        yield free


def planted(fault: Fault, free: SimpleQueue[Path]) -> Outcome:
    """Whether the tests find a fault."""
    root = free.get()
    file, start = root / fault.file, time.perf_counter()
    right = file.read_text()
    try:
        file.write_text(right.replace(fault.old, fault.new))
        found, broken = failing(root, fault)
    finally:
        file.write_text(right)
        free.put(root)
    status = "broken" if broken else "caught" if found else "explained" if fault.survives else "survived"
    return Outcome(fault, status, time.perf_counter() - start, found)


def failing(root: Path, fault: Fault) -> tuple[str, bool]:
    """The test that fails first, "" if none does; and whether the tests could not run."""
    names, _, word = fault.tests.partition(":")
    words = " and ".join(f"({part})" for part in (fault.other, word) if part)
    command = [sys.executable, "-m", "pytest", *(f"tests/{name}" for name in names.split()), "-k", words]
    # A file changed twice in a second may have the bytecode of another fault.
    environment = os.environ | dict(TRITON_INTERPRET="1", OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    try:
        done = subprocess.run(
            [*command, "-x", "-q", "-p", "no:cacheprovider", "--tb=no"],
            cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"past {LIMIT} s", False
    if done.returncode not in (0, 1):
        return f"pytest ended with {done.returncode}: {fault.tests}", True
    first = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), "")
    return first.removeprefix("FAILED ").partition(" - ")[0].removeprefix("tests/"), False


def cells(outcome: Outcome) -> list[str]:
    fault, said = outcome.fault, outcome.by[:80]
    planted_text = (fault.new or fault.old).splitlines()[0][:50]
    return [outcome.status, fault.file, planted_text, said or fault.survives or fault.why, f"{outcome.seconds:.0f} s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose file, text or reason has this word")
    parser.add_argument("--workers", type=int, default=2, help="faults at a time (2)")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if any(args.only in part for part in fault)]
    outcomes = []
    with copies(args.workers) as free, ThreadPoolExecutor(args.workers) as pool:
        for outcome in pool.map(lambda fault: planted(fault, free), chosen):
            outcomes.append(outcome)
            print(*cells(outcome), sep=" | ", flush=True)
    rows = sorted((outcome for outcome in outcomes if outcome.status != "caught"), key=lambda o: o.status)
    show("what no test found", ["status", "file", "fault", "why", "time"], [cells(outcome) for outcome in rows])
    counts = Counter(outcome.status for outcome in outcomes)
    print(f"{len(outcomes)} faults:", ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    sys.exit(bool(counts["survived"] + counts["broken"]))


if __name__ == "__main__":
    main()
