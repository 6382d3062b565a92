"""Every bad input is an error that names the argument and says what was seen."""

import inspect
import math
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import fusedloss
from fusedloss import checks, options
from fusedloss.losses.catalog import CATALOG, Role
from fusedloss.options import rules_of
from tests.grid import GIVEN_LOGITS, IN_BATCH, LEARNABLE, LOSSES, WITH_CLASSES, example

OPTIONS = {
    "metric": ["minkowski", None, 2],
    "reduction": ["average", None],
    "similar": [2, "1"],
    "power": [3, 1.5],
    "positives": ["semihard", "hard"],
    "negatives": ["farthest", None],
    "triplets": ["hardest", None],
    "margin": [math.nan, math.inf, -2.0],
    "pos_margin": [math.nan, math.inf, -0.5],
    "neg_margin": [math.nan, -math.inf, -0.5],
    "eps": [math.nan, -1e-6],
    "k": [(), (2, 1, 2), [0], range(3)],
    "k_temperature": [math.nan, math.inf, 0.0, -1.0],
    "temperature": [math.nan, math.inf, 0.0, -0.1],
    "alpha": [math.nan, math.inf, 0.0, -2.0],
    "beta": [math.nan, math.inf, 0, -50],
    "base": [math.nan, math.inf],
    "gamma": [math.nan, math.inf, 0.0, -80.0],
    "l2_reg": [math.nan, math.inf, -0.02],
    "logit_bias": [math.nan, -math.inf],
    "offset": [-1],
    "scale": [math.nan, math.inf, 0.0, -1.0],
    "label_smoothing": [math.nan, -0.1, 1.1],
    "sigma": [math.nan, 0.0, -0.5],
    "softcap": [math.nan, math.inf, 0.0, -30.0],
    "z_loss": [math.nan, -1e-4],
    "sub_centers": [0, -1, 9],
}
NUMBERS = ["margin", "pos_margin", "neg_margin", "eps", "temperature", "alpha", "beta", "base", "gamma", "l2_reg"]
NUMBERS += ["scale", "label_smoothing", "sigma", "softcap", "z_loss", "k_temperature"]
FLAGS = ["overwrite_logits", "normalize", "in_batch_negatives", "symmetric", "soft_margin", "swap"]
WRONG_TYPES = ["1", True, torch.ones(2), torch.tensor(1), None]


MAY_BE_ZERO = [(loss, "gamma") for loss in (fusedloss.focal_loss, fusedloss.linear_cross_entropy_loss)]
MAY_BE_ZERO += [(fusedloss.sigmoid_focal_loss, name) for name in ("alpha", "gamma")]
MAY_BE_ZERO += [(fusedloss.margin_loss, "beta")]
MAY_BE_NONE = [(fusedloss.siglip_loss, "offset")]
OF_SEVERAL = [(fusedloss.arcface_loss, "margin"), (fusedloss.cosface_loss, "margin"), (fusedloss.margin_loss, "beta")]


def optional_tensors(loss):
    """The tensors that a call may leave out; they are not options."""
    row = CATALOG.get(loss.__name__)
    return [name for name, role in row.tensors.items() if role.optional] if row else []


@pytest.mark.parametrize("loss", [*LOSSES, fusedloss.hardest_pairs])
def test_every_option_has_a_rule_that_its_default_follows(loss):
    tensors = [] if loss is fusedloss.hardest_pairs else CATALOG[loss.__name__].tensors
    numbers = [name for name in tensors if tensors[name] in (Role.SCALE, Role.BIAS)]
    assert rules_of(loss).keys() == {*loss.__kwdefaults__, *numbers} - {*optional_tensors(loss)}
    for name in loss.__kwdefaults__.keys() - {*optional_tensors(loss)}:
        default = loss.__kwdefaults__[name]
        found = rules_of(loss)[name](name, default)
        assert found == default and type(found) is type(default)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_number_that_may_be_learned_is_annotated_so(loss):
    for name, rule in rules_of(loss).items():
        learnable = "float | Tensor" in inspect.signature(loss).parameters[name].annotation
        assert learnable == takes_a_tensor(rule, name)


def takes_a_tensor(rule, name):
    try:
        return rule(name, torch.ones(1)).shape == ()
    except (TypeError, ValueError):
        return False


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.float16(0.5), np.int64(1), 1, Fraction(1, 2)])
def test_numbers_of_numpy_become_those_of_python(number):
    for rule in (options.number(), options.learnable()):
        found = rule("margin", number)
        assert type(found) in (int, float) and found == number


def test_integers_of_numpy_become_ints():
    for rule in (options.integer(), options.optional(options.integer()), options.one_of(1, 2)):
        found = rule("offset", np.int32(2))
        assert type(found) is int and found == 2
    x, labels = torch.ones(3, 2), torch.arange(3)
    want = fusedloss.pairwise_contrastive_loss(x, labels, x, labels, ref_offset=0, power=1)
    assert fusedloss.pairwise_contrastive_loss(x, labels, x, labels, ref_offset=np.int8(0), power=np.uint8(1)) == want


def test_a_tensor_of_one_element_receives_its_gradient_in_its_shape():
    temperature = torch.full((1,), 0.5, requires_grad=True)
    fusedloss.nt_xent_loss(torch.eye(2), torch.eye(2), temperature=temperature).backward()
    assert temperature.grad.shape == (1,) and temperature.grad != 0


def test_a_checked_loss_is_still_its_function():
    loss = fusedloss.supcon_loss
    assert pickle.loads(pickle.dumps(loss)) is loss
    assert inspect.signature(loss) == inspect.signature(loss.__wrapped__)
    assert loss.__doc__ == loss.__wrapped__.__doc__ and loss.__kwdefaults__ == loss.__wrapped__.__kwdefaults__


@pytest.mark.parametrize("dynamic", [None, True])
def test_the_checks_take_a_number_that_varies_in_compiled_code(dynamic):
    def scaled(x, temperature, margin):
        return x * checks.number("temperature", temperature, above=True) + checks.number("margin", margin, high=3.0)

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for number in (0.1, 0.2, 0.3):
        assert compiled(torch.ones(2), number, 2 * number) == pytest.approx(3 * number)


def test_values_are_read_only_of_plain_tensors():
    seen = []

    def look(x):
        seen.append(checks.readable(x))
        return x.sum()

    x = torch.ones(2, 3)
    torch.func.vmap(look)(x), torch.func.grad(look)(x), look(x.to("meta")), look(x)
    assert seen == [False, False, False, True]
    assert not checks.readable(x, x.to("meta")) and checks.readable(x, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_default_dtype_changes_nothing(loss, dtype):
    arguments = example(loss, refs=True)
    want = loss(**arguments)
    torch.set_default_dtype(dtype)
    try:
        found = loss(**arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == want.dtype and torch.equal(found, want)


OF_EACH = ("hard_negatives", "key_bias")  # one for each query, or key
WITH_TESTS_OF_THEIR_OWN = {"ref_offset", "ignore_index", "bias", "weight", "class_weight", "pos_weight"}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_wrong_values_of_every_option_are_here(loss):
    known = OPTIONS.keys() | {*FLAGS} | WITH_TESTS_OF_THEIR_OWN
    assert loss.__kwdefaults__.keys() <= known | {*optional_tensors(loss)}


def takes(name):
    return [loss for loss in LOSSES if name in loss.__kwdefaults__]


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (loss, name, v)
        for name, values in OPTIONS.items()
        for loss in takes(name)
        for v in values
        if not (v == 0 and (loss, name) in MAY_BE_ZERO)
    ],
)
def test_an_unknown_option_or_a_number_out_of_range_is_a_value_error(loss, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*got"):
        loss(**example(loss), **{name: value})


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (loss, name, v)
        for name in [*NUMBERS, "offset", "ignore_index"]
        for loss in takes(name)
        for v in WRONG_TYPES
        if v is not None
        or (loss.__kwdefaults__[name] is not None and (loss, name) != (fusedloss.siglip_loss, "offset"))
        if not (isinstance(v, torch.Tensor) and v.dim() and (loss, name) in OF_SEVERAL)
    ],
)
def test_a_number_of_the_wrong_type_is_a_type_error(loss, name, value):
    with pytest.raises(TypeError, match=f"^{name} must be .*got"):
        loss(**example(loss), **{name: value})


FIXED = [(loss, name) for name in NUMBERS for loss in takes(name) if (loss, name) not in LEARNABLE]


@pytest.mark.parametrize(("loss", "name"), FIXED)
def test_a_number_that_is_not_learnable_is_no_tensor(loss, name):
    with pytest.raises(TypeError, match=f"^{name} must be a number, got a torch.float32 tensor"):
        loss(**example(loss), **{name: torch.tensor(1.0)})


@pytest.mark.parametrize("value", [1, "yes", None, torch.tensor(True)], ids=repr)
@pytest.mark.parametrize(("loss", "name"), [(loss, name) for name in FLAGS for loss in takes(name)])
def test_a_flag_is_a_bool(loss, name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a bool, got"):
        loss(**example(loss), **{name: value})


@pytest.mark.parametrize("loss", [fusedloss.clip_loss, fusedloss.siglip_loss])
@pytest.mark.parametrize("name", ["logit_scale", "logit_bias"])
def test_a_logit_scale_or_bias_that_is_no_finite_number_is_an_error(loss, name):
    for value, error in [(math.nan, ValueError), ("1", TypeError), (torch.ones(2), TypeError)]:
        with pytest.raises(error, match=f"^{name} must be .*got"):
            loss(**(example(loss) | {name: value}))


def test_info_nce_needs_its_positives_and_some_negatives():
    q, k = torch.ones(3, 2), torch.ones(4, 2)
    with pytest.raises(
        ValueError, match=r"^key must have the 5 rows or more \(those of query, and offset\), got shape \(4, 2\)"
    ):
        fusedloss.info_nce_loss(q, k, offset=2)
    with pytest.raises(ValueError, match=r"^key must have the 3 rows, one a query, got shape \(4, 2\)"):
        fusedloss.info_nce_loss(q, k, symmetric=True)
    with pytest.raises(ValueError, match=r"^negatives must be given where in_batch_negatives is False, or hard_neg"):
        fusedloss.info_nce_loss(q, k, in_batch_negatives=False)
    with pytest.raises(ValueError, match=r"^symmetric must be False where in_batch_negatives is False, got True"):
        fusedloss.info_nce_loss(q, q, k, in_batch_negatives=False, symmetric=True)


@pytest.mark.parametrize("name", ["metric", "positives", "negatives"])
def test_hardest_pairs_checks_its_options(name):
    with pytest.raises(ValueError, match=f"^{name} must be one of .*'nearest'"):
        fusedloss.hardest_pairs(torch.ones(2, 2), torch.arange(2), **{name: "nearest"})


def rows_of(loss):
    """The floating arguments of a loss, the first of which the others are compared with."""
    found = example(loss, refs=True).items()
    return [name for name, v in found if v.is_floating_point() and v.dim() > 0 and name not in OF_EACH]


@pytest.mark.parametrize(
    ("loss", "name"), [(loss, name) for loss in LOSSES if loss not in GIVEN_LOGITS for name in rows_of(loss)]
)
def test_rows_of_the_wrong_type_rank_or_dtype_are_errors(loss, name):
    arguments = example(loss, refs=True)
    x = arguments[name]
    for wrong, error in [
        (x.tolist(), TypeError),
        (x.long(), TypeError),
        (x.to(torch.complex64), TypeError),
        (x[0], ValueError),
        (x[None], ValueError),
        (x[:, :0], ValueError),
    ]:
        with pytest.raises(error, match=f"^{name} must "):
            loss(**{**arguments, name: wrong})


@pytest.mark.parametrize(("loss", "name"), [(loss, name) for loss in LOSSES for name in rows_of(loss)[1:]])
def test_rows_that_do_not_fit_the_first_are_errors(loss, name):
    arguments = example(loss, refs=True)
    x = arguments[name]
    wrong = [(x[:, :-1], ValueError), (x.double(), TypeError), (x.half(), TypeError), (x.to("meta"), ValueError)]
    if CATALOG[loss.__name__].tensors[name] not in (Role.REF_ROWS, Role.QUEUE, Role.CLASSES):
        wrong.append((x[:-1], ValueError))
    for value, error in wrong:
        with pytest.raises(error, match=f"^{name} must have the|^{name} must be on"):
            loss(**{**arguments, name: value})


@pytest.mark.parametrize(
    ("loss", "name"),
    [(loss, name) for loss in LOSSES for name, v in example(loss, refs=True).items() if not v.is_floating_point()],
)
def test_labels_and_targets_that_do_not_fit_are_errors(loss, name):
    arguments = example(loss, refs=True)
    labels = arguments[name]
    wrong = [
        (labels.tolist(), TypeError),
        (labels[:-1], ValueError),
        (labels[:, None], ValueError),
        (labels.sum(), ValueError),
        (labels.to("meta"), ValueError),
    ]
    if name != "target":
        wrong += [(labels.float(), TypeError), (labels.to(torch.complex64), TypeError)]
    for value, error in wrong:
        with pytest.raises(error, match=f"^{name} must .*got"):
            loss(**{**arguments, name: value})


@pytest.mark.parametrize(
    ("loss", "name"), [(loss, name) for loss in LOSSES if loss not in GIVEN_LOGITS for name in rows_of(loss)]
)
def test_rows_of_several_dimensions_are_to_be_flattened(loss, name):
    arguments = example(loss, refs=True)
    wrong = arguments | {name: torch.ones(2, 3, 4)}
    with pytest.raises(ValueError, match=rf"^{name} must .*, got \(2, 3, 4\): flatten them, {name}\.flatten\(0, 1\)$"):
        loss(**wrong)


COMPARED = [(loss, name) for loss in LOSSES if not {*IN_BATCH, *WITH_CLASSES} & {loss} for name in rows_of(loss)[1:]]


@pytest.mark.parametrize(("loss", "name"), COMPARED)
def test_labels_in_the_place_of_rows_belong_to_other_losses(loss, name):
    arguments = example(loss, refs=True)
    advice = ": this loss takes rows there; losses by labels are supcon_loss, batch_hard_triplet_loss and others$"
    for labels, error in ((torch.arange(9), TypeError), (torch.arange(9.0), ValueError)):
        with pytest.raises(error, match=f"^{name} must .*, got .*{advice}"):
            loss(**arguments | {name: labels})


@pytest.mark.parametrize("loss", IN_BATCH)
@pytest.mark.parametrize("name", ["labels", "ref_labels"])
def test_rows_in_the_place_of_labels_belong_to_other_losses(loss, name):
    arguments = example(loss, refs=True)
    rows = arguments["embeddings" if name == "labels" else "ref_embeddings"]
    with pytest.raises(
        TypeError, match=f"^{name} must be .*, got torch.float32: rows of a second view belong to nt_xent_loss or"
    ):
        loss(**arguments | {name: rows})


@pytest.mark.parametrize(
    ("loss", "name"), [*((loss, "labels") for loss in IN_BATCH), *((loss, "target") for loss in WITH_CLASSES)]
)
def test_labels_in_columns_are_to_be_one_a_row(loss, name):
    arguments = example(loss)
    N = arguments[name].shape[0]
    for labels, advice in (
        (torch.ones(N, 1, dtype=torch.int64), f"take {name}.flatten()"),
        (torch.ones(N, 3, dtype=torch.int64), f"of one-hot ones take {name}.argmax(1)"),
    ):
        with pytest.raises(ValueError, match=re.escape(f", got {tuple(labels.shape)}: {advice}") + "$"):
            loss(**arguments | {name: labels})
    with pytest.raises(TypeError, match=f"^{name} must be .*, got torch.float32"):
        loss(**arguments | {name: torch.ones(N, 3)})


@pytest.mark.parametrize("loss", IN_BATCH)
@pytest.mark.parametrize("missing", ["ref_labels", "ref_embeddings"])
def test_references_come_with_their_labels(loss, missing):
    arguments = example(loss, refs=True)
    del arguments[missing]
    with pytest.raises(ValueError, match=f"^{missing} must be given together with"):
        loss(**arguments)


@pytest.mark.parametrize("loss", takes("ref_offset"))
def test_a_batch_among_its_references_is_where_ref_offset_says(loss):
    arguments = example(loss)
    with pytest.raises(ValueError, match=r"^ref_offset must be None where there are no ref_embeddings, got 0"):
        loss(**arguments, ref_offset=0)
    x, labels = arguments["embeddings"], arguments["labels"]
    with pytest.raises(
        ValueError, match=r"^ref_embeddings must have the 9 rows of embeddings from row 1 on, got 9 rows"
    ):
        loss(x, labels, x, labels, ref_offset=1)
    with pytest.raises(ValueError, match=r"^ref_offset must be at least 0, got -1"):
        loss(x, labels, x, labels, ref_offset=-1)
    for value in (True, 1.0, "0"):
        with pytest.raises(TypeError, match=r"^ref_offset must be an int, got"):
            loss(x, labels, x, labels, ref_offset=value)
    refs, ref_labels = torch.cat([x[:2], x]), torch.cat([labels[:2], labels])
    assert loss(x, labels, refs, ref_labels, ref_offset=2).isfinite()
    said = r"^ref_embeddings must have the rows of embeddings from row 0 \(ref_offset\) on, but row 2 is not row 2 of"
    with pytest.raises(ValueError, match=said):
        loss(x, labels, refs, ref_labels, ref_offset=0)
    with pytest.raises(
        ValueError, match=r"^ref_labels must have the labels from row 2 \(ref_offset\) on, but row 3 has"
    ):
        loss(x, labels, refs, ref_labels + (torch.arange(11) == 3), ref_offset=2)


@pytest.mark.parametrize("choose", [fusedloss.set_backend, lambda name: fusedloss.use_backend(name).__enter__()])
def test_an_unknown_backend_is_an_error_and_changes_nothing(choose):
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'blocked', got 'cuda'"):
        choose("cuda")
    assert fusedloss.backends.resolve_backend(torch.ones(1)) == "blocked"


def test_the_triton_backend_refuses_float64():
    with fusedloss.use_backend("triton"), pytest.raises(ValueError, match=r"backend 'triton' needs .*float64"):
        fusedloss.pairwise_contrastive_loss(torch.ones(2, 2).double(), torch.arange(2))


def test_the_triton_backend_refuses_cpu_tensors_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with fusedloss.use_backend("triton"), pytest.raises(ValueError, match=r"backend 'triton' needs .*on cpu"):
        fusedloss.pairwise_contrastive_loss(torch.ones(2, 2), torch.arange(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_double_backward_is_a_clear_error(backend, device, loss):
    arguments = {name: v.to(device) for name, v in example(loss).items()}
    rows = next(v.requires_grad_() for v in arguments.values() if v.is_floating_point())
    (grad,) = torch.autograd.grad(loss(**arguments), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        grad.sum().backward()


@pytest.mark.parametrize("margin", [torch.ones(8), torch.ones(2, 9), torch.full((9,), math.nan), torch.ones(9).long()])
@pytest.mark.parametrize("loss", [fusedloss.arcface_loss, fusedloss.cosface_loss])
def test_margins_of_rows_are_one_a_row_and_finite(loss, margin):
    with pytest.raises((TypeError, ValueError), match=r"^margin must "):
        loss(**example(loss), margin=margin)
    with pytest.raises(ValueError, match=r"^margin must be finite and at most 3\.14159 radians everywhere, got 4\.0"):
        fusedloss.arcface_loss(**example(fusedloss.arcface_loss), margin=torch.full((9,), -4.0))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if "class_weight" in loss.__kwdefaults__])
def test_weights_of_classes_are_constants_one_a_class(loss):
    for wrong in (torch.ones(6), torch.ones(7).long(), torch.ones(7, requires_grad=True), [1.0] * 7):
        with pytest.raises((TypeError, ValueError), match=r"^class_weight must "):
            loss(**example(loss), class_weight=wrong)


@pytest.mark.parametrize("loss", takes("sub_centers"))
def test_sub_centers_are_rows_of_every_class(loss):
    said = r"^weight must have shape \(C, 3, 5\), 3 sub_centers a class, got \(7, 5\)"
    with pytest.raises(ValueError, match=said):
        loss(**example(loss), sub_centers=3)
    arguments = example(loss, sub_centers=3)
    with pytest.raises(ValueError, match=r"^weight must have shape \(C, 2, 5\), 2 sub_centers a class, got"):
        loss(**arguments, sub_centers=2)
    with pytest.raises(ValueError, match=r"^weight must have shape"):
        loss(**arguments)


def test_a_beta_of_every_label_needs_labels_that_are_indices():
    x, labels = torch.ones(3, 2), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"^labels must be class indices from 0 to 1, got 2"):
        fusedloss.margin_loss(x, labels, beta=torch.ones(2))
    assert fusedloss.margin_loss(x, labels, beta=torch.ones(2), ignore_index=2).isfinite()


def test_what_is_given_for_each_query_or_key_fits_it():
    q, k = torch.ones(3, 2), torch.ones(4, 2)
    for wrong in (torch.ones(2, 5, 2), torch.ones(3, 2), torch.ones(3, 5, 3), torch.ones(3, 5, 2).double(), [[]]):
        with pytest.raises((TypeError, ValueError), match=r"^hard_negatives must "):
            fusedloss.info_nce_loss(q, k, hard_negatives=wrong)
    for wrong in (torch.ones(3), torch.ones(4).long(), torch.ones(4, 1), [0.0] * 4):
        with pytest.raises((TypeError, ValueError), match=r"^key_bias must "):
            fusedloss.info_nce_loss(q, k, key_bias=wrong)


@pytest.mark.parametrize("loss", [fusedloss.info_nce_loss, fusedloss.clip_loss, fusedloss.siglip_loss])
def test_ids_are_those_of_both_sides(loss):
    x, y, ids = torch.ones(3, 2), torch.ones(5, 2), torch.tensor([4, 5, 4])
    numbers = {name: 1.0 for name in ("logit_scale", "logit_bias") if name in CATALOG[loss.__name__].required}
    of_y = "key_ids" if loss is fusedloss.info_nce_loss else "text_ids"
    given = torch.tensor([0, 4, 5, 4, 1])
    assert loss(x, y, ids=ids, **{of_y: given}, offset=1, **numbers).isfinite()
    with pytest.raises(ValueError, match=rf"^{of_y} must be given with ids where there are 5 rows for 3 ids, got None"):
        loss(x, y, ids=ids, **numbers)
    said = rf"^{of_y} must be those of ids from row 0 \(offset\) on, but row 0 has id 0, row 0 of ids 4"
    with pytest.raises(ValueError, match=said):
        loss(x, y, ids=ids, **{of_y: given}, **numbers)
    with pytest.raises(TypeError, match=r"^ids must be an integer or bool tensor, got NoneType"):
        loss(x, y, **{of_y: given}, **numbers)
    with pytest.raises(ValueError, match=r"must have the 5 rows or more \(those of \w+, and offset\), got shape"):
        loss(x, y[:4], ids=ids, offset=2, **numbers)
