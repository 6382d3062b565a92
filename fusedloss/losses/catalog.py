"""The catalog: one row per loss, with what the modules, the tools, the tests and the benchmarks need to know of it.

A loss takes tensors, and a role says what each of them is, whatever its name. A new loss is one more row here; then its
module knows which tensors it owns, and the tests, the compile report and the benchmarks know how to call the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from . import centers, classes, logits, margins, pairs, proxies, ranking, softmax, structured, towers, triplets


class Role(Enum):
    """What a tensor is to a loss of N samples of D dimensions, and of C classes."""

    ROWS = "[N, D]: one row per sample"
    KEYS = "[N, D] or more rows: row i is the positive of row i of ROWS, and a negative of all others"
    VIEW = "[N, D]: the same samples once more; both views are one batch, which is compared with itself"
    LABELS = "[N], integers: rows with equal ones are positives of each other"
    REF_ROWS = "[M, D], optional: what the rows are compared with, instead of with each other"
    REF_LABELS = "[M], optional: the labels of REF_ROWS"
    QUEUE = "[K, D], optional: negatives of every row"
    HARD_NEGATIVES = "[N, K, D], optional: negatives of one row alone"
    IDS = "[N], integers, optional: keys with the id of a row are not among its negatives"
    KEY_IDS = "[M], integers, optional: the ids of KEYS, if they differ from those of ROWS"
    KEY_BIAS = "[M], optional: added to the logits of KEYS"
    SIMILAR = "[N]: which of the given pairs are similar"
    MAYBE_SIMILAR = "[N], optional: which of the given pairs are similar; without it, all of them"
    GRADES = "[N]: how similar the given pairs ought to be; only the order counts"
    CLASSES = "[C, D]: one row per class, which a module owns and trains"
    CLASS = "[N]: the class of every sample, from 0 to C - 1"
    LOGITS = "[N, C]: given logits"
    ANSWERS = "[N, C]: the target of every logit, from 0 to 1"
    SCALE = "a number that may be learned, and that a module may own: the factor of all logits"
    BIAS = "a number that may be learned, and that a module may own: it is added to all logits"

    @property
    def optional(self) -> bool:
        """Whether a call may leave the tensor out."""
        return "optional" in self.value


# Tensors that several losses take.
REFERENCES = {"ref_embeddings": Role.REF_ROWS, "ref_labels": Role.REF_LABELS}
IN_BATCH = {"embeddings": Role.ROWS, "labels": Role.LABELS, **REFERENCES}
GIVEN_PAIRS = {"x1": Role.ROWS, "x2": Role.ROWS, "target": Role.SIMILAR}
TEXT_IDS = {"ids": Role.IDS, "text_ids": Role.KEY_IDS}
IMAGE_TEXT = {"image": Role.ROWS, "text": Role.KEYS, "logit_scale": Role.SCALE}
QUERY_KEY = {
    "query": Role.ROWS,
    "key": Role.KEYS,
    "negatives": Role.QUEUE,
    "ids": Role.IDS,
    "key_ids": Role.KEY_IDS,
    "hard_negatives": Role.HARD_NEGATIVES,
    "key_bias": Role.KEY_BIAS,
}
WEIGHT = {"embeddings": Role.ROWS, "weight": Role.CLASSES, "target": Role.CLASS}
PROXIES = {"embeddings": Role.ROWS, "proxies": Role.CLASSES, "target": Role.CLASS}
CENTERS = {"embeddings": Role.ROWS, "centers": Role.CLASSES, "target": Role.CLASS}
OF_LOGITS = {"logits": Role.LOGITS, "target": Role.CLASS}
OF_ELEMENTS = {"logits": Role.LOGITS, "target": Role.ANSWERS}


class Loss(NamedTuple):
    """A public loss function and what is known about it.

    The families are "folds" (row states of all pairs), "triplets" (all triplets), "ranking" (each positive among all
    rows of its anchor), "mined" (one or two pairs per anchor, found or known), "rows" (given pairs and triplets),
    "logits" (a softmax over given logits) and "elements" (every given logit is a question of its own).
    """

    function: Callable[..., Tensor]
    family: str  # the kernels that compute it
    tensors: Mapping[str, Role]  # the names of its tensors, in order, and their roles
    products: float | None = None  # the fewest full products of all pairs, forward and backward; None: memory bounds it
    pieces: tuple[str, ...] = ()  # the functions of `kernels/losses.py` that it folds
    variants: tuple[dict[str, Any], ...] = ()  # options for which it uses other kernels or other pieces
    emits: bool = False  # its gradient comes with the forward, for the reductions "mean" and "sum"

    def named(self, role: Role) -> list[str]:
        """The names of its tensors that have a role."""
        return [name for name, its_role in self.tensors.items() if its_role is role]

    @property
    def required(self) -> dict[str, Role]:
        """Its tensors without the optional ones."""
        return {name: role for name, role in self.tensors.items() if not role.optional}

    @property
    def paired(self) -> bool:
        """Whether the place in a second tensor, and not a label, says which row is the positive."""
        return bool(self.named(Role.KEYS) or self.named(Role.VIEW))

    def sides(self, N: int, C: int) -> tuple[int, int]:
        """The shape of its score matrix for tensors of N rows and for C classes."""
        anchors = 2 * N if self.named(Role.VIEW) else N
        return anchors, C if self.named(Role.CLASSES) else anchors


# Function, family, tensors, products, pieces, variants, and whether the gradient comes with the forward.
_LOSSES = (
    Loss(pairs.contrastive_loss, "rows", GIVEN_PAIRS),
    Loss(pairs.euclidean_distance_loss, "rows", GIVEN_PAIRS),
    Loss(pairs.cosine_similarity_loss, "rows", GIVEN_PAIRS | {"target": Role.MAYBE_SIMILAR}),
    Loss(pairs.cosine_embedding_loss, "rows", GIVEN_PAIRS),
    Loss(pairs.cosent_loss, "rows", GIVEN_PAIRS | {"target": Role.GRADES}),
    Loss(margins.pairwise_contrastive_loss, "folds", IN_BATCH, 1.5, ("contrastive", "linear_contrastive"),
         ({"power": 1},), emits=True),
    Loss(margins.margin_loss, "folds", IN_BATCH, 1.5, ("linear_contrastive",), emits=True),
    Loss(triplets.triplet_margin_loss, "rows", {"anchor": Role.ROWS, "positive": Role.ROWS, "negative": Role.ROWS}),
    Loss(triplets.batch_hard_triplet_loss, "mined", IN_BATCH, 1, variants=({"negatives": "semihard"},)),
    Loss(triplets.batch_semihard_triplet_loss, "triplets", IN_BATCH, 1),
    Loss(triplets.batch_all_triplet_loss, "triplets", IN_BATCH, 3,
         variants=({"soft_margin": True}, {"triplets": "semihard"})),
    Loss(towers.info_nce_loss, "folds", QUERY_KEY, 3, ("softmax",), ({"symmetric": True},)),
    Loss(softmax.nt_xent_loss, "folds", {"z1": Role.ROWS, "z2": Role.VIEW}, 3, ("softmax",)),
    Loss(softmax.decoupled_contrastive_loss, "folds", {"z1": Role.ROWS, "z2": Role.KEYS}, 7, ("softmax",)),
    Loss(towers.clip_loss, "folds", IMAGE_TEXT | TEXT_IDS, 4, ("softmax",)),
    Loss(towers.siglip_loss, "folds", IMAGE_TEXT | {"logit_bias": Role.BIAS} | TEXT_IDS, 3, ("sigmoid",),
         emits=True),
    Loss(softmax.supcon_loss, "folds", IN_BATCH, 3, ("softmax",)),
    Loss(towers.n_pair_loss, "folds", {"anchor": Role.ROWS, "positive": Role.KEYS}, 3, ("softmax",)),
    Loss(softmax.pairwise_nt_xent_loss, "folds", IN_BATCH, 3, ("softmax", "sigmoid")),
    Loss(softmax.nca_loss, "folds", IN_BATCH, 3, ("softmax",)),
    Loss(structured.multi_similarity_loss, "folds", IN_BATCH, 3, ("softmax",)),
    Loss(structured.circle_loss, "folds", IN_BATCH, 3, ("circle",)),
    Loss(structured.generalized_lifted_structure_loss, "folds", IN_BATCH, 3, ("softmax",)),
    Loss(structured.lifted_structure_loss, "folds", IN_BATCH, 3, ("softmax", "contrastive")),
    Loss(ranking.smooth_ap_loss, "ranking", IN_BATCH, 3),
    Loss(ranking.recall_at_k_loss, "ranking", IN_BATCH, 3),
    Loss(classes.linear_cross_entropy_loss, "folds", WEIGHT, 3, ("softmax", "capped"),
         ({"label_smoothing": 0.1}, {"softcap": 30.0})),
    Loss(classes.arcface_loss, "folds", WEIGHT, 3, ("softmax",), ({"sub_centers": 4},)),
    Loss(classes.cosface_loss, "folds", WEIGHT, 3, ("softmax",)),
    Loss(classes.normalized_softmax_loss, "folds", WEIGHT, 3, ("softmax",)),
    Loss(proxies.proxy_nca_loss, "folds", PROXIES, 3, ("softmax",)),
    Loss(proxies.proxy_anchor_loss, "folds", PROXIES, 3, ("softmax",)),
    Loss(centers.center_loss, "mined", CENTERS),
    Loss(centers.island_loss, "mined", CENTERS),
    Loss(logits.cross_entropy_loss, "logits", OF_LOGITS, variants=({"label_smoothing": 0.1},)),
    Loss(logits.focal_loss, "logits", OF_LOGITS),
    Loss(logits.binary_cross_entropy_loss, "elements", OF_ELEMENTS),
    Loss(logits.sigmoid_focal_loss, "elements", OF_ELEMENTS),
)  # fmt: skip
CATALOG: dict[str, Loss] = {loss.function.__name__: loss for loss in _LOSSES}
# One of every family of kernels, and of every combination of pieces that losses fold.
SAMPLE: list[Loss] = list({(loss.family, loss.pieces): loss for loss in _LOSSES}.values())


def function_of(loss: object) -> Any:
    """The function of a loss that is given as a function, as a module (class or object) or as a `partial` of either."""
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "function", loss)


def option_of(loss: object, name: str) -> Any:
    """The value that an option of a loss has where a call does not give it; None if there is no such option."""
    while isinstance(loss, partial):
        if name in loss.keywords:
            return loss.keywords[name]
        loss = loss.func
    defaults = getattr(function_of(loss), "__kwdefaults__", None) or {}
    return getattr(loss, name, defaults.get(name))


def find(loss: object) -> Loss | None:
    """The row of a loss, given as for `function_of`; None if it is not a loss of fusedloss."""
    function = function_of(loss)
    row = CATALOG.get(getattr(function, "__name__", ""))
    return row if row is not None and row.function is function else None
