"""What the pictures of the losses show: rows in a plane, or a loss as a function of one number. See `pictures`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fusedloss


class Rows(NamedTuple):
    """Rows of one tensor."""

    places: Sequence[tuple[float, float]]
    classes: Sequence[int]  # the colours; whose is that of the ringed row belongs to it
    marker: str = "o"
    what: str = "rows"


class Plane(NamedTuple):
    """What the term of one row, or the whole loss, does to all rows."""

    sides: Mapping[str, Rows]  # by the name of the tensor
    given: Mapping[str, Any] = {}  # its other arguments
    sphere: bool = False  # rows of length 1
    term: int | None = 0  # which number of reduction "none"; None: the mean
    ringed: str | None = None  # the tensor that has the row of that number; None: the first
    radii: Mapping[str, float] = {}  # circles around the ringed row
    cosines: Mapping[str, float] = {}  # rays at this cosine to it


class Links(NamedTuple):
    """The pairs that were found for every row."""

    rows: Rows


class Curves(NamedTuple):
    """Losses of one number, and their slopes."""

    label: str
    ends: tuple[float, float]
    lines: Mapping[str, Callable[[Tensor], Tensor]]  # of a number, or of several for themselves


def loss_of(name: str) -> Callable[..., Any]:
    return getattr(fusedloss, name)  # type: ignore[no-any-return]


def at(*degrees: float) -> list[tuple[float, float]]:
    """Places on the unit circle, counted from its top."""
    return [(math.sin(math.radians(d)), math.cos(math.radians(d))) for d in degrees]


def each(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of one number, of several."""
    return lambda x: torch.stack([function(v) for v in x])


def direction(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)


def labelled(rows: Rows, sphere: bool = False, **options: Any) -> Plane:
    names = ("radii", "cosines")
    shown = {name: options.pop(name) for name in names if name in options}
    return Plane({"embeddings": rows}, {"labels": torch.tensor(rows.classes), **options}, sphere, **shown)


def of_classes(name: str, rows: Rows, classes: Rows, sphere: bool = True, **more: Any) -> Plane:
    shown = {key: more.pop(key) for key in ("term", "ringed") if key in more}
    given = {"target": torch.tensor(rows.classes), **more}
    return Plane({"embeddings": rows, name: classes}, given, sphere, **shown)


def given_pair(name: str, similar: int, **options: Any) -> Callable[[Tensor], Tensor]:
    """A loss of given pairs by their distance."""
    return lambda d: loss_of(name)(
        torch.zeros_like(d)[:, None], d[:, None], torch.full(d.shape, similar), reduction="none", **options
    )


def given_cosine(name: str, similar: int, **options: Any) -> Callable[[Tensor], Tensor]:
    """A loss of given pairs by their cosine."""

    def line(cos: Tensor) -> Tensor:
        other = torch.stack([cos, (1 - cos.square()).sqrt()], 1)
        axis = torch.tensor([1.0, 0.0], dtype=cos.dtype).expand_as(other)
        return loss_of(name)(axis, other, torch.full(cos.shape, similar), reduction="none", **options)

    return line


def angular(name: str, **options: Any) -> Callable[[Tensor], Tensor]:
    """A loss of rows between two classes, 90 degrees apart, by the angle to their own in degrees."""

    def line(degrees: Tensor) -> Tensor:
        weight = torch.eye(2, dtype=degrees.dtype)
        target = torch.zeros(degrees.shape, dtype=torch.int64)
        return loss_of(name)(direction(degrees.deg2rad()), weight, target, reduction="none", **options)

    return line


def of_logit(name: str, others: int, **options: Any) -> Callable[[Tensor], Tensor]:
    """A loss of logits by that of the own class; the others are 0."""

    def line(z: Tensor) -> Tensor:
        logits = torch.cat([z[:, None], z.new_zeros(len(z), others)], 1)
        return loss_of(name)(logits, torch.zeros(len(z), dtype=torch.int64), reduction="none", **options)

    return line


def of_element(name: str, target: float, **options: Any) -> Callable[[Tensor], Tensor]:
    return lambda z: loss_of(name)(z, torch.full_like(z, target), reduction="none", **options)


def in_order(scale: float) -> Callable[[Tensor], Tensor]:
    """CoSENT of two pairs, by how much more alike the one is that ought to be less."""

    def line(gap: Tensor) -> Tensor:
        angles = torch.stack([(0.5 * (1 - gap)).acos(), (0.5 * (1 + gap)).acos()])
        axis = torch.tensor([[1.0, 0.0]] * 2, dtype=gap.dtype)
        return fusedloss.cosent_loss(axis, direction(angles), torch.tensor([1, 0]), scale=scale)

    return each(line)


def belongs(offset: int | None, bias: float) -> Callable[[Tensor], Tensor]:
    """SigLIP of one image and one text, by their cosine."""

    def line(cos: Tensor) -> Tensor:
        image = torch.tensor([[1.0, 0.0]], dtype=cos.dtype)
        text = torch.stack([cos, (1 - cos.square()).clamp(min=0).sqrt()])[None]
        return fusedloss.siglip_loss(image, text, 10.0, bias, offset=offset)

    return each(line)


def two_views(name: str) -> Callable[[Tensor], Tensor]:
    """Of three samples the loss of one view, by the cosine to its other view."""

    def line(cos: Tensor) -> Tensor:
        others = torch.tensor(at(100, 200), dtype=cos.dtype)
        first = torch.cat([torch.tensor(at(0), dtype=cos.dtype), others])
        second = torch.cat([direction(math.pi / 2 - cos.acos())[None], others])
        return loss_of(name)(first, second, temperature=0.5, reduction="none")[0]

    return each(line)


NEGATIVES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # similarities to the anchor of what a positive is ranked among


def ranked(name: str, by_rank: bool, **options: Any) -> Callable[[Tensor], Tensor]:
    """A loss of one positive among `NEGATIVES`, by its similarity to the anchor, or by its place among them."""

    def line(v: Tensor) -> Tensor:
        similarity = 1.05 - 0.1 * v if by_rank else v
        scores = torch.cat([similarity[None], torch.tensor(NEGATIVES, dtype=v.dtype)])[:, None]
        labels = torch.tensor([0] + [1] * len(NEGATIVES))
        anchor = torch.ones(1, 1, dtype=v.dtype)
        return loss_of(name)(anchor, labels[:1], scores, labels, metric="dot", reduction="none", **options)[0]

    return each(line)


ROUND = Rows(at(0, -28, 75, 40, -62, 128, -150), (0, 0, 0, 1, 1, 2, 2))
SPREAD = Rows(
    [(0, 0), (0.42, 0.22), (-0.62, 0.42), (0.3, -0.42), (0.86, -0.12), (-0.72, -0.5), (0.72, 0.95), (-1.15, 0.75)],
    (0, 0, 0, 1, 1, 2, 1, 2),
)
FARTHEST = max(math.hypot(*place) for place, of in zip(SPREAD.places, SPREAD.classes, strict=True) if of == 0)
ONE_POSITIVE = Rows([(-0.45, 0), (0.45, 0.15), (-0.75, -0.55), (0.85, -0.5), (0.95, 0.9), (-1.1, 0.7)],
                    (0, 0, 1, 1, 2, 2))  # fmt: skip
LONG = Rows([(0.25, 0.95), (0.9, -0.35), (-0.8, -0.2)], (0, 1, 2), "o", "anchors")
LONG_KEYS = Rows([(0.65, 0.6), (0.55, -0.75), (-0.45, 0.45)], (0, 1, 2), "s", "positives")
IMAGES = Rows(at(0, 100, -120), (0, 1, 2), "o", "images")
TEXTS = Rows(at(55, 145, -50), (0, 1, 2), "s", "texts")
CLASSES = Rows(at(48, 150, -60), (0, 1, 2), "*", "classes")
ONE = Rows(at(0), (0,))
CLUSTERS = Rows(
    [(0.15, 0.75), (0.75, 0.9), (0.45, 0.2), (0.75, -0.4), (0.2, -0.95), (0.9, -0.95), (-0.8, 0.5), (-1.1, -0.25),
     (-0.45, -0.35)],
    (0, 0, 0, 1, 1, 1, 2, 2, 2),
)  # fmt: skip
CENTERS = Rows([(0.35, 0.5), (0.5, -0.6), (-0.65, 0.05)], (0, 1, 2), "*", "centers")
FREE = Rows([(0.55, 0.75), (0.8, -0.55), (-0.8, 0.1)], (0, 1, 2), "*", "classes")
DISTANCE, COSINE, LOGIT, ANGLE = "distance", "cosine", "logit", "angle to the own class, degrees"

PICTURES: dict[str, Plane | Links | Curves] = {
    "pairwise_contrastive_loss": labelled(SPREAD, pos_margin=0.2, radii={"pos_margin": 0.2, "neg_margin": 1.0}),
    "margin_loss": labelled(SPREAD, beta=0.75, radii={"beta - margin": 0.55, "beta + margin": 0.95}),
    "circle_loss": labelled(ROUND, True, gamma=8.0, cosines={"1 - m": 0.6, "m": 0.4}),
    "multi_similarity_loss": labelled(ROUND, True, beta=10.0, cosines={"base": 0.5}),
    "lifted_structure_loss": labelled(ONE_POSITIVE, normalize=False),
    "generalized_lifted_structure_loss": labelled(SPREAD, normalize=False),
    "batch_hard_triplet_loss": labelled(SPREAD, radii={"d_ap": FARTHEST, "d_ap + margin": FARTHEST + 0.2}),
    "batch_all_triplet_loss": labelled(SPREAD, margin=0.3),
    "batch_semihard_triplet_loss": labelled(SPREAD, margin=0.5),
    "triplet_margin_loss": Plane(
        {"anchor": Rows([(0.0, 0.1)], (0,), "o", "anchor"), "positive": Rows([(0.6, 0.45)], (0,), "s", "positive"),
         "negative": Rows([(0.7, -0.4)], (1,), "D", "negative")},
        {"margin": 0.4}, radii={"d_ap": math.hypot(0.6, 0.35), "d_ap + margin": math.hypot(0.6, 0.35) + 0.4},
    ),
    "hardest_pairs": Links(CLUSTERS),
    "supcon_loss": labelled(ROUND, True, temperature=0.4),
    "pairwise_nt_xent_loss": labelled(ROUND, True, temperature=0.4),
    "nt_xent_loss": Plane(
        {"z1": Rows(at(0, 95, -130), (0, 1, 2), "o", "z1"), "z2": Rows(at(50, 150, -70), (0, 1, 2), "s", "z2")},
        {"temperature": 0.5}, True,
    ),
    "decoupled_contrastive_loss": Curves(
        "cosine of the two views of a sample", (-0.99, 0.99),
        {"decoupled": two_views("decoupled_contrastive_loss"), "NT-Xent": two_views("nt_xent_loss")},
    ),
    "nca_loss": labelled(SPREAD, temperature=0.4),
    "info_nce_loss": Plane(
        {"query": Rows(at(0, 95, -130), (0, 1, 2), "o", "queries"),
         "key": Rows(at(50, 150, -70), (0, 1, 2), "s", "keys"), "negatives": Rows(at(20, -25), (3, 3), "D", "queue")},
        {"temperature": 0.4}, True,
    ),
    "n_pair_loss": Plane({"anchor": LONG, "positive": LONG_KEYS}),
    "clip_loss": Plane({"image": IMAGES, "text": TEXTS}, {"logit_scale": 3.0}, True),
    "siglip_loss": Curves(
        COSINE, (-1, 1),
        {"belong together, bias -10": belongs(0, -10.0), "do not, bias -10": belongs(None, -10.0),
         "belong together, bias -5": belongs(0, -5.0), "do not, bias -5": belongs(None, -5.0)},
    ),
    "smooth_ap_loss": Curves(
        "similarity of the positive", (0.15, 1.0),
        {f"temperature {t}": ranked("smooth_ap_loss", False, temperature=t) for t in (0.01, 0.03, 0.1)},
    ),
    "recall_at_k_loss": Curves(
        "rank of the positive", (1, 9),
        {f"k = {k}": ranked("recall_at_k_loss", True, k=k, temperature=0.05) for k in ((1,), (4,), (1, 2, 4, 8))},
    ),
    "arcface_loss": Curves(ANGLE, (0, 90), {f"margin {m}": angular("arcface_loss", margin=m, scale=16.0)
                                            for m in (0.0, 0.25, 0.5)}),
    "cosface_loss": Curves(ANGLE, (0, 90), {f"margin {m}": angular("cosface_loss", margin=m, scale=16.0)
                                            for m in (0.0, 0.2, 0.35)}),
    "normalized_softmax_loss": of_classes("weight", ONE, CLASSES, temperature=0.5),
    "linear_cross_entropy_loss": of_classes("weight", Rows([(0.3, 0.3)], (0,)), FREE, False),
    "proxy_nca_loss": of_classes("proxies", ONE, CLASSES._replace(what="proxies")),
    "proxy_anchor_loss": of_classes(
        "proxies", ROUND._replace(places=at(30, -28, 75, 55, -62, 128, -150)),
        Rows(at(0, 100, -120), (0, 1, 2), "*", "proxies"), alpha=8.0, ringed="proxies",
    ),
    "center_loss": of_classes("centers", CLUSTERS, CENTERS, False, term=None),
    "island_loss": of_classes("centers", CLUSTERS, CENTERS, False, term=None, weight=0.3),
    "contrastive_loss": Curves(
        DISTANCE, (0.01, 2),
        {"similar": given_pair("contrastive_loss", 1), "dissimilar, margin 1": given_pair("contrastive_loss", 0),
         "dissimilar, margin 1.5": given_pair("contrastive_loss", 0, margin=1.5)},
    ),
    "euclidean_distance_loss": Curves(
        DISTANCE, (0.01, 2),
        {"similar": given_pair("euclidean_distance_loss", 1),
         "dissimilar, margin 1": given_pair("euclidean_distance_loss", 0),
         "dissimilar, margin 1.5": given_pair("euclidean_distance_loss", 0, margin=1.5)},
    ),
    "cosine_similarity_loss": Curves(
        COSINE, (-0.999, 0.999),
        {"similar": given_cosine("cosine_similarity_loss", 1),
         "dissimilar": given_cosine("cosine_similarity_loss", 0)},
    ),
    "cosine_embedding_loss": Curves(
        COSINE, (-0.999, 0.999),
        {"similar": given_cosine("cosine_embedding_loss", 1),
         "dissimilar, margin 0": given_cosine("cosine_embedding_loss", 0),
         "dissimilar, margin 0.5": given_cosine("cosine_embedding_loss", 0, margin=0.5)},
    ),
    "cosent_loss": Curves("cosine of the pair with the lower target - the other's", (-0.5, 0.5),
                          {f"scale {scale}": in_order(scale) for scale in (5.0, 10.0, 20.0)}),
    "cross_entropy_loss": Curves(
        f"{LOGIT} of the own class, 9 others at 0", (-6, 12),
        {f"label_smoothing {e}": of_logit("cross_entropy_loss", 9, label_smoothing=e) for e in (0.0, 0.1, 0.3)},
    ),
    "focal_loss": Curves(f"{LOGIT} of the own class, 1 other at 0", (-4, 6),
                         {f"gamma {g}": of_logit("focal_loss", 1, gamma=g) for g in (0.0, 1.0, 2.0, 5.0)}),
    "binary_cross_entropy_loss": Curves(
        LOGIT, (-5, 5),
        {"target 1": of_element("binary_cross_entropy_loss", 1), "target 0": of_element("binary_cross_entropy_loss", 0),
         "target 1, pos_weight 3": of_element("binary_cross_entropy_loss", 1, pos_weight=torch.tensor(3.0))},
    ),
    "sigmoid_focal_loss": Curves(
        LOGIT, (-5, 5),
        {"target 1": of_element("sigmoid_focal_loss", 1), "target 0": of_element("sigmoid_focal_loss", 0),
         "target 1, gamma 0": of_element("sigmoid_focal_loss", 1, gamma=0.0)},
    ),
}  # fmt: skip
