"""What compilers make of the kernels that the interpreter does not show; in a process of its own, which compiles."""

import ast
import json
import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

from fusedloss.losses.catalog import CATALOG
from tests.grid import in_full

code_generator = pytest.importorskip("triton.compiler.code_generator")
KERNELS = sorted((Path(__file__).parent.parent / "kernels").glob("*.py"))
# Of whole numbers. Of floats a maximum that drops NaN, as it does in compiled code, may stand nowhere.
WHOLE = {
    "tl.minimum(first_row + tl.num_programs(0) * BM, N)",
    "tl.maximum(tl.minimum(high, columns) - low, 0)",
    "tl.minimum(high, columns)",
    "tl.maximum(exponent(load(largest[0], i, n)), LOWEST)",
    "tl.maximum(begin // BN * BN, start)",
    "tl.maximum(high, whole)",
    "tl.maximum(k, -127)",
    "tl.maximum(ragged, 0)",
    "tl.maximum(tl.min(left), 0)",
    "tl.maximum(tl.minimum(tl.cdiv(stop, BN) * BN, end), low)",
    "tl.maximum(tl.minimum(tl.max(stop - begin), last) - first, 0)",
    "tl.maximum(tl.where(first < rows, end, start), start)",
    "tl.maximum(top, exponent(tl.max(tl.abs(w), 1)))",
    "tl.maximum(tl.minimum(k, most - 1), 0)",
    "tl.maximum(turns - 1, 0)",
    "tl.minimum(columns - (stop - begin), 1)",
    "tl.minimum(first + BM, rows)",
    "tl.minimum(first + acc.shape[1], D)",
    "tl.minimum(high, whole)",
    "tl.minimum(k, most - 1)",
    "tl.minimum(load(anchors.stop, a, n) - load(anchors.start, a, n) - first, width)",
    "tl.minimum(start + width, M)",
    "tl.minimum(stop - at, width)",
    "tl.minimum(stop - begin - number, room)",
    "tl.minimum(stop - begin, room)",
    "tl.minimum(stop, at + K)",
    "tl.minimum(tl.cdiv(stop, BN) * BN, end)",
    "tl.minimum(tl.max(stop - begin), last)",
    "tl.minimum(tl.maximum(begin // BN * BN, start), whole)",
    "tl.minimum(tl.maximum(k, -127), 127)",
}
COMPILE = """
import json, sys
import triton
from triton.backends import backends
from triton.compiler import code_generator
from triton.runtime import driver

from fusedloss.tools import compiling, report
from fusedloss.tools.workloads import workloads

until, names, dtype = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
compiler, seen, kernels = backends["nvidia"].compiler, {}, []
stages_of, mangle = compiler.add_stages, code_generator.mangle_fn

class Done(Exception):
    pass

def add_stages(self, stages, *others):
    def done(source, metadata):
        raise Done(str(source))
    stages_of(self, stages, *others)
    stages[until] = done

def leaves(path, type):
    if hasattr(type, "types"):
        for i, inner in enumerate(type.types):
            yield from leaves((*path, i), inner)
    elif hasattr(type, "value"):
        yield path, repr(type.value)
    else:
        yield None, type.mangle()

def mangle_fn(name, types, context):
    # as Triton before 3.7 names a copy of a function: by the types of what varies and by what is constant where
    found = [leaf for i, type in enumerate(types) for leaf in leaves((i,), type)]
    before = name, tuple(t for at, t in found if at is None), tuple(leaf for leaf in found if leaf[0] is not None)
    seen.setdefault(before, set()).add(mangle(name, types, context))
    return mangle(name, types, context)

compiler.add_stages, code_generator.mangle_fn = add_stages, mangle_fn
target = compiling.target("sm_90")
driver.set_active(compiling.AbsentGPU(target))
for work in workloads(names, [4096], [128], [dtype], None, 8192):
    for launch in report.distinct(work, "sm_90", False):
        source, alike = launch.source, seen.clear()
        options = {name: compiling.restored(value) for name, value in source.options}
        try:
            compiling.restored(source.kernel).warmup(*compiling.restored(source.args), grid=(1,), **options)
        except Done as done:
            alike = [before[0] for before, after in seen.items() if len(after) > 1]
            kernels.append((work.name, source.kernel.name, alike, str(done)))
json.dump(kernels, sys.stdout)
"""


def compiled(until, losses, dtype, tmp_path):
    """(loss, kernel, functions that look alike, code) of every kernel, as the stage `until` is given it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, until, ",".join(losses), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_maximum_drops_nan():
    for path in KERNELS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tl.maximum", "tl.minimum", "tl.clamp"):
                keeps = any(k.arg == "propagate_nan" and ast.unparse(k.value).endswith("ALL") for k in node.keywords)
                assert keeps or ast.unparse(node) in WHOLE, f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_dtypes_are_on_the_right_of_a_comparison():
    """The dtype is compared with a constant on the right: in Triton 3.3 `tl.float16 == DTYPE` is never true."""
    for path in KERNELS:
        for node in ast.walk(ast.parse(path.read_text())):
            left = ast.unparse(node.left) if isinstance(node, ast.Compare) else ""
            assert not re.fullmatch(r"tl\.b?float\d+", left), f"{path.name}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.skipif("constants" in signature(code_generator.mangle_fn).parameters, reason="of this Triton itself")
def test_no_two_calls_are_one_to_an_older_triton(tmp_path):
    """Before 3.7, calls whose tuples differ only in their nesting share their code, which is that of the first call."""
    kernels = compiled("ttgir", CATALOG, "bf16", tmp_path)
    assert {loss.split(",")[0] for loss, *_ in kernels} == set(CATALOG)
    assert not [(loss, kernel, alike) for loss, kernel, alike, _ in kernels if alike]


def exponents(ptx):
    """For every exponential in a PTX program, the instruction that makes its argument, before the factor log2(e)."""
    made = {}
    for line in ptx.splitlines():
        found = re.match(r"\s*(?:@!?%p\d+ )?([a-z][\w.]*)\s+(%\w+),\s*(.*);", line)
        if not found:
            continue
        operation, to, operands = found.groups()
        if operation.startswith("ex2"):
            scaled = made.get(operands.strip(), ("", ""))
            yield made.get(scaled[1].split(",")[0].strip(), ("", ""))[0]
        made[to] = operation, operands


@pytest.mark.parametrize("loss", ["circle_loss", "supcon_loss", *in_full("lifted_structure_loss", "clip_loss")])
def test_what_feeds_an_exponential_is_rounded_alike_in_fold_and_gradient(loss, tmp_path):
    """A product that is fused with the subtraction of a state in only one of two kernels is rounded in only one."""
    kernels = {name: code for _, name, _, code in compiled("cubin", [loss], "bf16", tmp_path)}
    for name in ("fold", "grad"):
        operations = list(exponents(kernels[name]))
        assert operations.count("sub.f32") >= 16, operations
        assert not [operation for operation in operations if operation.startswith("fma")], (name, operations)
