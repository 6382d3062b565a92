"""`fusedloss.compat.open_clip` beside the library itself: its modes, its calls, a training script."""

from __future__ import annotations

import importlib
import itertools
import sys
from argparse import Namespace
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .grid import running
from .libraries import assert_closer, assert_same
from .libraries import library as installed
from .processes import run

open_clip = installed("open_clip", "open-clip")

from fusedloss.compat import fused_calls  # noqa: E402
from fusedloss.compat import library as compat_library  # noqa: E402
from fusedloss.compat import open_clip as compat  # noqa: E402

NAMES = ("ClipLoss", "SigLipLoss", "CoCaLoss", "DistillClipLoss")


@pytest.fixture(autouse=True)
def counted_from_0() -> None:
    fused_calls(reset=True)


def features(seed: int, dtype: torch.dtype = torch.float64, N: int = 7, D: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(N, D, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    return image.to(dtype), text.to(dtype)


def inputs(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, shape: tuple[int, ...] = ()) -> dict[str, Any]:
    """What a loss is called with, by the library's names."""
    image, text = features(seed, dtype)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    given: dict[str, Any] = dict(
        image_features=image, text_features=text, logit_scale=torch.full(shape, 9.0, dtype=wide)
    )
    if name in ("ClipLoss", "SigLipLoss"):
        given["logit_bias"] = torch.full(shape, -3.0, dtype=wide)
    if name == "CoCaLoss":
        g = torch.Generator().manual_seed(seed + 50)
        given["logits"] = torch.randn(7, 5, 11, generator=g, dtype=torch.float64).to(dtype)
        given["labels"] = torch.randint(11, (7, 5), generator=g)
    if name == "DistillClipLoss":
        given["dist_image_features"], given["dist_text_features"] = features(seed + 90, dtype, D=5)  # a smaller teacher
        # A number where it is rounded: a gradient that cancels is all rounding then.
        given["dist_logit_scale"] = torch.full(shape, 20.0, dtype=wide) if dtype == torch.float64 else 20.0
    return given


def outcome(loss: Any, given: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """The values of a loss and all gradients."""
    leaves = {
        name: t.detach().clone().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t
        for name, t in given.items()
    }
    values = loss(**leaves, **options)
    named = values if isinstance(values, dict) else dict(enumerate(values if isinstance(values, tuple) else [values]))
    sum((i + 1.5) * value.double() for i, value in enumerate(named.values())).backward()
    found = {f"value {name}": value.detach() for name, value in named.items()}
    return found | {name: t.grad for name, t in leaves.items() if isinstance(t, Tensor) and t.grad is not None}


def both(name: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    return getattr(compat.loss, name)(*arguments, **options), getattr(open_clip.loss, name)(*arguments, **options)


def options_of(name: str) -> dict[str, Any]:
    return dict(caption_loss_weight=2.0, clip_loss_weight=0.5, pad_id=3) if name == "CoCaLoss" else {}


def all_fused() -> bool:
    return all(call.fused for call in fused_calls())


@pytest.mark.parametrize("name", NAMES)
def test_a_call_is_that_of_the_library(name):
    for shape, output_dict, cache in itertools.product([(), (1,)], [False, True], [False, True]):
        ours, theirs = both(name, **options_of(name), cache_labels=cache)
        given, form = inputs(name, shape=shape), dict(output_dict=output_dict)
        for _ in range(2):  # labels are cached
            assert_same(outcome(ours, given, **form), outcome(theirs, given, **form))
    assert fused_calls() and all_fused()


def compare_rounded(ours: Any, theirs: Any, given: dict[str, Any], dtype: torch.dtype, context: object = "") -> None:
    """In float32, or in bfloat16 with or without autocast, against the library's results of the same features in
    float64."""
    exact = {name: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in given.items()}
    autocast = dtype == torch.bfloat16 and given["image_features"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, rounded = outcome(ours, given), outcome(theirs, given)
    assert_closer(found, rounded, outcome(theirs, exact), dtype, context)


@pytest.mark.parametrize(
    ("dtype", "of_features"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_what_is_rounded_is_as_near_to_the_exact_value_as_in_the_library(name, dtype, of_features):
    compare_rounded(*both(name, **options_of(name)), inputs(name, of_features), dtype)
    assert all_fused()


@pytest.mark.parametrize("name", NAMES)
def test_kernels(name):
    """The same on interpreted kernels."""
    with running("triton", "small"):
        compare_rounded(*both(name, **options_of(name)), inputs(name, torch.float32), torch.float32)
    assert all_fused()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_need_not_be_tensors_and_arguments_go_by_place(name):
    ours, theirs = both(name, **options_of(name))
    given = inputs(name)
    numbers = {key: float(v) if isinstance(v, Tensor) and v.dim() == 0 else v for key, v in given.items()}
    ordered = [numbers[argument] for argument in signature(theirs.forward).parameters if argument in numbers]
    found, wanted = ours(*ordered), theirs(*ordered)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    if "logit_bias" in numbers:
        numbers["logit_bias"] = None
        torch.testing.assert_close(ours(**numbers), theirs(**numbers), rtol=1e-10, atol=1e-10)
    assert all_fused()


def test_the_parts_of_coca_that_are_switched_off():
    ours, theirs = both("CoCaLoss", 1.0, 0)
    given = inputs("CoCaLoss")
    found, wanted = outcome(ours, given), outcome(theirs, given)
    assert_same(found, wanted)
    assert torch.equal(found["value 0"], torch.tensor(0))


def test_coca_without_captions_is_0_where_the_library_has_nan():
    ours, theirs = both("CoCaLoss", 1.0, 1.0)
    given = inputs("CoCaLoss") | dict(labels=torch.zeros(7, 5, dtype=torch.int64))
    assert theirs(**given)[1].isnan() and not ours(**given)[1]


def test_distillation_has_no_tensor_of_all_pairs():
    ours, theirs = both("DistillClipLoss")
    given = inputs("DistillClipLoss")
    wanted = outcome(theirs, given)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where it is none
        assert_same(outcome(ours, given), wanted)


def refused() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Calls that are not fused, and why."""
    none, more = features(0, N=0), features(0, N=9)
    teacher = {name: t.float() for name, t in inputs("DistillClipLoss").items() if name.startswith("dist")}
    per_row = torch.full((7, 1), 9.0, dtype=torch.float64)
    return {
        "no rows": ("ClipLoss", "without rows", dict(image_features=none[0], text_features=none[1])),
        "no rows of siglip": ("SigLipLoss", "without rows", dict(image_features=none[0], text_features=none[1])),
        "a scale a row": ("ClipLoss", "logit_scale", dict(logit_scale=per_row)),
        "a bias a row": ("SigLipLoss", "logit_bias", dict(logit_bias=per_row)),
        "an infinite scale": ("ClipLoss", "finite", dict(logit_scale=float("inf"))),
        "more texts": ("ClipLoss", "text_features must have the shape", dict(text_features=more[1])),
        "a teacher of another dtype": ("DistillClipLoss", "dtype", teacher),
    }  # fmt: skip


@pytest.mark.parametrize("case", refused())
def test_what_is_not_fused_is_the_librarys(case):
    name, why, changed = refused()[case]
    ours, theirs = both(name)
    given = inputs(name) | changed
    try:
        wanted = theirs(**given)
    except Exception as error:
        with pytest.raises(type(error)):
            ours(**given)
    else:
        torch.testing.assert_close(ours(**given), wanted, equal_nan=True, rtol=0, atol=0)
    (call,) = fused_calls()
    assert (call.loss, call.fused) == (name, False) and why in call.why


class Halved(compat.ClipLoss):
    def get_logits(self, *arguments: Any, **options: Any) -> list[Tensor]:
        return [logits / 2 for logits in super().get_logits(*arguments, **options)]


def test_a_subclass_keeps_its_methods():
    given = inputs("ClipLoss")
    wanted = open_clip.ClipLoss()(**given | dict(logit_scale=given["logit_scale"] / 2))
    torch.testing.assert_close(Halved()(**given), wanted)
    assert fused_calls() == [("Halved", False, "get_logits is overridden", 1)]


def test_the_methods_of_the_library_are_there():
    ours, theirs = both("ClipLoss", rank=1, world_size=2, local_loss=True)
    assert torch.equal(ours.get_ground_truth("cpu", 4), theirs.get_ground_truth("cpu", 4))
    ours, theirs = both("SigLipLoss")
    given = inputs("SigLipLoss")
    assert torch.equal(ours.get_logits(**given), theirs.get_logits(**given))
    with pytest.raises(AssertionError):
        compat.SigLipLoss(dist_impl="ring")
    for name in NAMES:
        ours, theirs = both(name, **options_of(name))
        assert isinstance(ours, type(theirs)) and type(ours).__name__ == type(theirs).__name__
        theirs.load_state_dict(ours.state_dict())


def test_all_else_is_the_librarys():
    assert compat.create_model_and_transforms is open_clip.create_model_and_transforms
    assert compat.loss.gather_features is open_clip.loss.gather_features
    assert compat.factory.load_checkpoint is open_clip.factory.load_checkpoint
    assert set(dir(open_clip)) <= set(dir(compat))


MAKES: dict[str, dict[str, Any]] = {
    "ClipLoss": {},
    "SigLipLoss": dict(siglip=True),
    "CoCaLoss": dict(model="coca_ViT-B-32"),
    "DistillClipLoss": dict(distill=True),
}


def args_of(**changed: Any) -> Namespace:
    """The arguments of open_clip's training script."""
    args = dict(
        distill=False, siglip=False, model="ViT-B-32", local_loss=True, gather_with_grad=True, rank=1, world_size=3,
        horovod=False, coca_caption_loss_weight=2.0, coca_contrastive_loss_weight=0.5, loss_dist_impl="shift",
    )  # fmt: skip
    return Namespace(**args | changed)


@pytest.mark.parametrize("name", NAMES)
def test_create_loss_makes_ours(name):
    args = args_of(**MAKES[name])
    ours, theirs = compat.create_loss(args), open_clip.create_loss(args)
    assert type(ours) is getattr(compat, name) and type(theirs) is getattr(open_clip.loss, name)
    private = ("_modules",)
    assert {k: v for k, v in vars(ours).items() if k not in private} == {
        k: v for k, v in vars(theirs).items() if k not in private
    }
    assert compat.factory.create_loss is compat.create_loss


SCRIPT = """
import torch
from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg, create_loss

torch.manual_seed(0)
model = CLIP(
    16, CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=16),
    CLIPTextCfg(context_length=6, vocab_size=50, width=32, heads=2, layers=1),
    output_dict=True, init_logit_bias=-10.0 if args.siglip else None,
).double()
loss = create_loss(args)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
history = []
for step in range(2):
    images, texts = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.randint(50, (6, 6))
    optimizer.zero_grad()
    losses = loss(**model(images, texts), output_dict=True)
    total_loss = sum(losses.values())
    total_loss.backward()
    optimizer.step()
    history += [total_loss.detach(), *(p.grad.clone() for p in model.parameters())]
"""


@pytest.mark.parametrize("siglip", [False, True])
def test_a_training_script_with_one_import_changed(siglip):
    histories = []
    for script in (SCRIPT, SCRIPT.replace("from open_clip import", "from fusedloss.compat.open_clip import")):
        names: dict[str, Any] = dict(args=args_of(siglip=siglip, world_size=1, rank=0))
        exec(script, names)
        histories.append(names["history"])
    assert fused_calls() == [("SigLipLoss" if siglip else "ClipLoss", True, "", 2)]
    torch.testing.assert_close(histories[1], histories[0], rtol=1e-10, atol=1e-10)


class Horovod(SimpleNamespace):
    """A stand-in for horovod.torch with two processes, the other of which has the same features, negated."""

    def allgather(self, x: Tensor) -> Tensor:
        return torch.cat([-x, x])


@pytest.mark.parametrize("gather_with_grad", [False, True])
@pytest.mark.parametrize("local_loss", [False, True])
@pytest.mark.parametrize("name", ["ClipLoss", "CoCaLoss", "DistillClipLoss"])
def test_horovod(name, local_loss, gather_with_grad, monkeypatch):
    monkeypatch.setattr(open_clip.loss, "hvd", Horovod())
    modes = dict(local_loss=local_loss, gather_with_grad=gather_with_grad, rank=1, world_size=2, use_horovod=True)
    ours, theirs = both(name, **options_of(name), **modes)
    given = inputs(name)
    assert_same(outcome(ours, given), outcome(theirs, given))
    assert all_fused()


def in_a_group(world: int) -> int:
    """Compare every mode of every loss, in this process of a group; returns how many were compared."""
    rank = torch.distributed.get_rank()
    fused_calls(reset=True)
    modes = [
        (name, dict(options_of(name), local_loss=local, gather_with_grad=grad, cache_labels=True))
        for name, local, grad in itertools.product(("ClipLoss", "CoCaLoss", "DistillClipLoss"), (0, 1), (0, 1))
    ]
    modes += [("SigLipLoss", dict(dist_impl=way)) for way in ("bidir", "shift", "reduce", "gather")]
    for name, options in modes:
        ours, theirs = both(name, **options, rank=rank, world_size=world)
        given = inputs(name, seed=rank)
        assert_same(outcome(ours, given), outcome(theirs, given), (name, options))
        compare_rounded(ours, theirs, inputs(name, torch.float32, seed=rank), torch.float32, (name, options))
    assert fused_calls() and all_fused()
    return len(modes)


@pytest.mark.parametrize("world", [2, 3])
def test_every_mode_over_a_group(world):
    assert run(world, in_a_group, world) == [16] * world


def test_the_extra_is_named_where_the_library_is_absent_or_old(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("fusedloss.compat.open_clip")]:
        monkeypatch.delitem(sys.modules, name)
    load = partial(importlib.import_module, "fusedloss.compat.open_clip")
    with monkeypatch.context() as old:
        old.setattr(compat_library, "version", lambda package: "2.32.0")
        with pytest.raises(
            ImportError, match=r"open-clip-torch>=3.0, found 2.32.0: pip install 'fusedloss\[open-clip\]'"
        ):
            load()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"cannot be imported .*: pip install 'fusedloss\[open-clip\]'"):
        load()
