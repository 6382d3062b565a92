"""Other implementations of the losses. Each has some losses, as functions of a batch of rows and labels."""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedloss.tools.measure import Loss

from . import rivals
from .forms import of_batch

FLOAT32, HALF = ("float32",), ("float16", "bfloat16")


class Peer(NamedTuple):
    """A package, by its name in an index, or other code; and which of our losses it has, with our options."""

    module: str  # the module to import; the peer is installed if it can be found
    losses: dict[str, Callable[..., Loss]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = FLOAT32 + HALF
    dense: bool = True  # its memory grows with all pairs or triplets

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


def loss_of(peer: str, loss: str, options: dict[str, Any]) -> Loss:
    """A peer's loss as a function of rows and labels; a ValueError if it lacks an option."""
    make = PEERS[peer].losses[loss]
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ValueError(f"{peer}, {loss} of {options}: {error}") from None
    return make(**options)


def allow(**options: tuple[Any, tuple[Any, ...]]) -> None:
    """Raise a ValueError unless every option has one of the values that a peer supports."""
    for name, (value, theirs) in options.items():
        if value not in theirs:
            raise ValueError(f"{name} is {' or '.join(map(repr, theirs))} here, got {value!r}")


# ------------------------------------------------------------------------------------------- pytorch-metric-learning


def metric_learning_contrastive(
    *, power: int, reduction: str, pos_margin: float = 0.0, neg_margin: float = 1.0
) -> Loss:
    from pytorch_metric_learning import distances, losses

    allow(power=(power, (1,)), reduction=(reduction, ("active",)))
    distance = distances.LpDistance(normalize_embeddings=False)
    return losses.ContrastiveLoss(pos_margin=pos_margin, neg_margin=neg_margin, distance=distance)


def metric_learning_batch_hard(*, margin: float = 0.2) -> Loss:
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False)
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(margin=margin, distance=distance, reducer=reducers.MeanReducer())
    return lambda x, labels: loss(x, labels, miner(x, labels))


def metric_learning_all_triplets(*, reduction: str, margin: float = 0.2) -> Loss:
    from pytorch_metric_learning import distances, losses

    allow(reduction=(reduction, ("active",)))
    return losses.TripletMarginLoss(margin=margin, distance=distances.LpDistance(normalize_embeddings=False))


def metric_learning_supcon(*, temperature: float = 0.1) -> Loss:
    from pytorch_metric_learning import losses

    return losses.SupConLoss(temperature=temperature)


def metric_learning_circle(*, margin: float = 0.4, gamma: float = 80.0) -> Loss:
    from pytorch_metric_learning import losses

    return losses.CircleLoss(m=margin, gamma=gamma)


def metric_learning_multi_similarity(*, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5) -> Loss:
    from pytorch_metric_learning import losses

    return losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=base)


def metric_learning_lifted(name: str, *, neg_margin: float = 1.0, pos_margin: float = 0.0) -> Loss:
    from pytorch_metric_learning import losses

    loss: Loss = getattr(losses, name)(neg_margin=neg_margin, pos_margin=pos_margin)
    return loss


def metric_learning_nt_xent(*, temperature: float = 0.5) -> Loss:
    from pytorch_metric_learning import losses

    loss = losses.NTXentLoss(temperature=temperature)
    return lambda x, labels: loss(x, torch.arange(len(x) // 2, device=x.device).repeat(2))  # two views a class


def metric_learning_pairwise_nt_xent(*, temperature: float = 0.07) -> Loss:
    from pytorch_metric_learning import losses

    return losses.NTXentLoss(temperature=temperature)


def metric_learning_nca(*, temperature: float = 1.0) -> Loss:
    from pytorch_metric_learning import distances, losses

    distance = distances.LpDistance(normalize_embeddings=False, power=2)
    return losses.NCALoss(softmax_scale=1 / temperature, distance=distance)


def metric_learning_arcface(*, margin: float = 0.5, scale: float = 64.0) -> Loss:
    return metric_learning_classes("ArcFaceLoss", "W", margin=math.degrees(margin), scale=scale)


def metric_learning_cosface(*, margin: float = 0.35, scale: float = 64.0) -> Loss:
    return metric_learning_classes("CosFaceLoss", "W", margin=margin, scale=scale)


def metric_learning_normalized_softmax(*, temperature: float = 0.05) -> Loss:
    return metric_learning_classes("NormalizedSoftmaxLoss", "W", temperature=temperature)


def metric_learning_proxy_nca(*, scale: float = 1.0) -> Loss:
    return metric_learning_classes("ProxyNCALoss", "proxies", softmax_scale=scale)


def metric_learning_proxy_anchor(*, margin: float = 0.1, alpha: float = 32.0) -> Loss:
    return metric_learning_classes("ProxyAnchorLoss", "proxies", margin=margin, alpha=alpha)


def metric_learning_classes(name: str, weight: str, **options: Any) -> Loss:
    """One of the library's losses of classes, with our rows in place of its own parameter."""
    from pytorch_metric_learning import losses

    def of_rows(x: Tensor, labels: Tensor) -> Tensor:
        rows, classes = x[: len(labels)], x[len(labels) :]
        loss = getattr(losses, name)(2, x.shape[1], **options)
        loss.num_classes, loss.proxy_labels = len(classes), torch.arange(len(classes), device=x.device)
        loss.cast_types = lambda *_: None  # it would copy its parameter
        delattr(loss, weight)
        setattr(loss, weight, classes.t() if weight == "W" else classes)
        found: Tensor = loss(rows, labels)
        return found

    return of_rows


# --------------------------------------------------------------------------------------------- sentence-transformers


def sentence_transformers(name: str, margin: float, metric: str) -> Loss:
    """One of the library's triplet losses, of embeddings in place of a model."""
    allow(metric=(metric, ("euclidean", "sqeuclidean", "cosine")))
    from sentence_transformers.sentence_transformer import losses

    of = losses.BatchHardTripletLossDistanceFunction
    distances = {
        "euclidean": of.euclidean_distance,
        "sqeuclidean": partial(of.euclidean_distance, squared=True),
        "cosine": of.cosine_distance,
    }
    loss = getattr(losses, name)(None, distance_metric=distances[metric], margin=margin)
    return lambda x, labels: loss.compute_loss_from_embeddings([x], labels)


def sentence_transformers_batch_hard(*, margin: float = 0.2, metric: str = "euclidean") -> Loss:
    return sentence_transformers("BatchHardTripletLoss", margin, metric)


def sentence_transformers_all_triplets(*, reduction: str, margin: float = 0.2, metric: str = "euclidean") -> Loss:
    allow(reduction=(reduction, ("active",)))
    return sentence_transformers("BatchAllTripletLoss", margin, metric)


def sentence_transformers_semihard(*, margin: float = 0.2, metric: str = "sqeuclidean") -> Loss:
    return sentence_transformers("BatchSemiHardTripletLoss", margin, metric)


def sentence_transformers_ranking(scale: float, metric: str, symmetric: bool) -> Loss:
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import losses

    loss = losses.MultipleNegativesRankingLoss(
        None,
        scale=scale,
        similarity_fct={"cosine": util.cos_sim, "dot": util.dot_score}[metric],
        directions=("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",),
        partition_mode="per_direction",
    )
    return lambda x, labels: loss.compute_loss_from_embeddings(list(x.chunk(2)), labels)


def sentence_transformers_info_nce(
    *, temperature: float = 0.07, metric: str = "cosine", symmetric: bool = False
) -> Loss:
    return sentence_transformers_ranking(1 / temperature, metric, symmetric)


def sentence_transformers_clip(*, logit_scale: float) -> Loss:
    return sentence_transformers_ranking(logit_scale, "dot", symmetric=True)


def sentence_transformers_n_pair() -> Loss:
    return sentence_transformers_ranking(1.0, "dot", symmetric=False)


def sentence_transformers_cosent(*, scale: float = 20.0) -> Loss:
    from sentence_transformers.sentence_transformer import losses

    loss = losses.CoSENTLoss(None, scale=scale)
    return of_batch(lambda x1, x2, target: loss.compute_loss_from_embeddings([x1, x2], target), "cosent_loss")


# ---------------------------------------------------------------------------------------------------- Triton kernels


def inf_cl(scale: float, metric: str, symmetric: bool) -> Loss:
    from inf_cl import cal_flash_loss

    def one_way(x: Tensor, y: Tensor) -> Tensor:
        head = math.gcd(x.shape[1], 256)  # its kernels take a row in parts of this power of 2
        value: Tensor = cal_flash_loss(x, y, scale=scale, head_dim=head).mean()
        return value

    def of_pairs(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.float(), y.float()  # as it does, but before the scale rounds them
        if metric == "cosine":
            x, y = F.normalize(x), F.normalize(y)
        return (one_way(x, y) + one_way(y, x)) / 2 if symmetric else one_way(x, y)

    return of_batch(of_pairs, "clip_loss")


def inf_cl_info_nce(*, temperature: float = 0.07, metric: str = "cosine", symmetric: bool = False) -> Loss:
    allow(metric=(metric, ("cosine", "dot")))
    return inf_cl(1 / temperature, metric, symmetric)


def inf_cl_clip(*, logit_scale: float) -> Loss:
    return inf_cl(logit_scale, "dot", symmetric=True)


def memeff_clip(*, logit_scale: float) -> Loss:
    """For rows of length 1 only: it takes logit_scale for the largest logit."""
    os.environ.setdefault("MEMEFF_INPUT_PRECISION", "ieee")  # read by its import; tf32 otherwise
    from memeff import MemoryEfficientCLIPLoss

    # stable: the gradient would be that of the loss times sqrt(N / logit_scale)
    loss = MemoryEfficientCLIPLoss(temperature=1 / logit_scale, normalized_inputs=True, stable=False)
    return of_batch(loss, "clip_loss")


def siglip_kernel_siglip(*, logit_scale: float, logit_bias: float) -> Loss:
    from siglip_kernel import fused_siglip_loss

    def of_pairs(image: Tensor, text: Tensor) -> Tensor:
        log_scale, bias = image.new_tensor([math.log(logit_scale), logit_bias], dtype=torch.float32)
        # what it chooses for 16 bits; its choice for float32 has tf32 products
        value: Tensor = fused_siglip_loss(image, text, log_scale, bias, backend="chunked_bf16")
        return value

    return of_batch(of_pairs, "siglip_loss")


def liger_linear_cross_entropy(
    *, ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Loss:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return of_batch(
        liger_fused_linear_cross_entropy,
        "linear_cross_entropy_loss",
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        accum_dtype=torch.float32,  # of the gradient of the classes, else summed in 16 bits
    )


def liger_cross_entropy(*, ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean") -> Loss:
    from liger_kernel.transformers.functional import liger_cross_entropy

    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    # a clone, since it writes the gradient over the logits
    return lambda x, labels: liger_cross_entropy(x.clone(), labels, **options)


def cut_linear_cross_entropy(*, ignore_index: int = -100, reduction: str = "mean") -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    return of_batch(
        linear_cross_entropy,
        "linear_cross_entropy_loss",
        ignore_index=ignore_index,
        reduction=reduction,
        filter_eps=None,  # by default it leaves small gradients out
    )


# ------------------------------------------------------------------------------------------------------ plain PyTorch


def torch_linear_cross_entropy(
    *, ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Loss:
    loss = partial(F.cross_entropy, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return of_batch(lambda x, w, target: loss(F.linear(x, w), target), "linear_cross_entropy_loss")


def torch_cross_entropy(*, ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean") -> Loss:
    return partial(F.cross_entropy, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)


def torch_binary_cross_entropy(*, reduction: str = "mean") -> Loss:
    return of_batch(F.binary_cross_entropy_with_logits, "binary_cross_entropy_loss", reduction=reduction)


def sorted_all_triplets(*, margin: float = 0.2, metric: str = "euclidean", reduction: str = "mean") -> Loss:
    allow(reduction=(reduction, ("mean", "active", "sum")))
    return partial(rivals.batch_all_triplet_loss, margin=margin, metric=metric, reduction=reduction)


def sorted_semihard(*, margin: float = 0.2, metric: str = "sqeuclidean", reduction: str = "mean") -> Loss:
    allow(reduction=(reduction, ("mean", "active", "sum")))
    return partial(rivals.batch_semihard_triplet_loss, margin=margin, metric=metric, reduction=reduction)


PEERS = {
    "pytorch-metric-learning": Peer(
        "pytorch_metric_learning",
        {
            "pairwise_contrastive_loss": metric_learning_contrastive,
            "batch_hard_triplet_loss": metric_learning_batch_hard,
            "batch_all_triplet_loss": metric_learning_all_triplets,
            "supcon_loss": metric_learning_supcon,
            "circle_loss": metric_learning_circle,
            "multi_similarity_loss": metric_learning_multi_similarity,
            "generalized_lifted_structure_loss": partial(metric_learning_lifted, "GeneralizedLiftedStructureLoss"),
            "lifted_structure_loss": partial(metric_learning_lifted, "LiftedStructureLoss"),
            "nt_xent_loss": metric_learning_nt_xent,
            "pairwise_nt_xent_loss": metric_learning_pairwise_nt_xent,
            "nca_loss": metric_learning_nca,
            "arcface_loss": metric_learning_arcface,
            "cosface_loss": metric_learning_cosface,
            "normalized_softmax_loss": metric_learning_normalized_softmax,
            "proxy_nca_loss": metric_learning_proxy_nca,
            "proxy_anchor_loss": metric_learning_proxy_anchor,
        },
        dtypes=FLOAT32,  # torch.cdist has no 16-bit kernel
    ),
    "torch": Peer(
        "torch",
        {
            "linear_cross_entropy_loss": torch_linear_cross_entropy,
            "cross_entropy_loss": torch_cross_entropy,
            "binary_cross_entropy_loss": torch_binary_cross_entropy,
        },
    ),
    "sorted": Peer(
        "torch",
        {"batch_all_triplet_loss": sorted_all_triplets, "batch_semihard_triplet_loss": sorted_semihard},
        dense=False,
    ),
    "sentence-transformers": Peer(
        "sentence_transformers",
        {
            "batch_hard_triplet_loss": sentence_transformers_batch_hard,
            "batch_all_triplet_loss": sentence_transformers_all_triplets,
            "batch_semihard_triplet_loss": sentence_transformers_semihard,
            "info_nce_loss": sentence_transformers_info_nce,
            "clip_loss": sentence_transformers_clip,
            "n_pair_loss": sentence_transformers_n_pair,
            "cosent_loss": sentence_transformers_cosent,
        },
    ),
    "liger-kernel": Peer(
        "liger_kernel",
        {"linear_cross_entropy_loss": liger_linear_cross_entropy, "cross_entropy_loss": liger_cross_entropy},
        devices=("cuda",),
        dense=False,
    ),
    "cut-cross-entropy": Peer(
        "cut_cross_entropy",
        {"linear_cross_entropy_loss": cut_linear_cross_entropy},
        devices=("cuda",),
        dtypes=HALF,  # its backward asserts it
        dense=False,
    ),
    "inf-cl": Peer(
        "inf_cl",
        {"info_nce_loss": inf_cl_info_nce, "clip_loss": inf_cl_clip},
        devices=("cuda",),
        dtypes=HALF,  # its products are tf32: a result in float32 is not one of float32
        dense=False,
    ),
    "memeff": Peer("memeff", {"clip_loss": memeff_clip}, devices=("cuda",), dense=False),
    "siglip-kernel": Peer("siglip_kernel", {"siglip_loss": siglip_kernel_siglip}, devices=("cuda",), dense=False),
}
