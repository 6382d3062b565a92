"""What the pages of docs/losses do not have written by hand: `python -m bench.gallery`.

The cost of a loss comes from the catalog and from the newest result files, the cards of the index from the pages.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fusedloss.losses.catalog import CATALOG, Loss, Role

from . import drop_ins, files, tables
from .cpu_table import OURS, D
from .plots import LABELS
from .workloads import CASES

FOLDER = files.ROOT / "docs" / "losses"
INDEX = FOLDER / "index.md"
RESULTS = files.ROOT / "bench" / "results"
COST = re.compile(r"(?<=<!-- cost -->\n).*(?=<!-- /cost -->)", re.DOTALL)
CARDS = re.compile(r"(?<=<!-- cards -->\n).*(?=<!-- /cards -->)", re.DOTALL)

GROUPS = {
    "Pairs of a batch": (
        "pairwise_contrastive_loss", "margin_loss", "circle_loss", "multi_similarity_loss", "lifted_structure_loss",
        "generalized_lifted_structure_loss",
    ),
    "Triplets": (
        "batch_hard_triplet_loss", "batch_all_triplet_loss", "batch_semihard_triplet_loss", "triplet_margin_loss",
        "hardest_pairs",
    ),
    "A softmax over the batch": (
        "supcon_loss", "nt_xent_loss", "decoupled_contrastive_loss", "pairwise_nt_xent_loss", "nca_loss",
        "info_nce_loss", "n_pair_loss", "clip_loss", "siglip_loss",
    ),
    "Ranks": ("smooth_ap_loss", "recall_at_k_loss"),
    "Classes": (
        "arcface_loss", "cosface_loss", "normalized_softmax_loss", "linear_cross_entropy_loss", "proxy_nca_loss",
        "proxy_anchor_loss", "center_loss", "island_loss",
    ),
    "Given pairs": (
        "contrastive_loss", "euclidean_distance_loss", "cosine_similarity_loss", "cosine_embedding_loss", "cosent_loss",
    ),
    "Given logits": ("cross_entropy_loss", "focal_loss", "binary_cross_entropy_loss", "sigmoid_focal_loss"),
}  # fmt: skip
NAMES = tuple(name for names in GROUPS.values() for name in names)

# ------------------------------------------------------------------------------------------------------------- costs

# By the family of the kernels: what grows with what.
GROWTH = {
    "folds": "Time O(N·M·D), memory O((N + M)·D): the N × M scores never exist.",
    "mined": "Time O(N·M·D), memory O((N + M)·D): the N × M distances never exist.",
    "triplets": "Time O(N·M·D) for the distances and, on a CPU, O(N·M·log N) for the triplets, which on a GPU are "
    "compared one by one; memory O((N + M)·D): neither distances nor triplets exist.",
    "ranking": "Time O(N·M·(D + P)) for classes of P rows, memory O((N + M)·D): dense code compares every positive "
    "with every row, which takes N·P·M numbers or more.",
    "rows": "Time and memory O(N·D): row i of one tensor meets row i of the other and no other row.",
    "logits": "Time O(N·C): the logits are read once forward and once backward. Beyond them and their gradient memory "
    "is O(N), and with `overwrite_logits=True` the gradient takes none of its own.",
    "elements": "Time proportional to the number of logits, which are read once forward and once backward. The "
    "gradient is as large as they are, and with `overwrite_logits=True` takes no memory of its own.",
}
OF_CLASSES = "Time O(N·C·D), memory O((N + C)·D): the N × C logits never exist."
OF_CENTERS = "Time O(N·D), memory O((N + C)·D): every row meets one center."
OWN_GROWTH = {
    "cosent_loss": "Time O(N·D + N·log N), memory O(N·D): the pairs of pairs are sums along the sorted targets.",
    "island_loss": "Time and memory O((N + C)·D): the pairs of centers are the squared length of one sum.",
}
MINED = "batch_hard_triplet_loss"  # which makes and uses `hardest_pairs`

# Losses that are measured as drop-ins alone, or beside another library only there.
DROP_INS = {
    "batch_semihard_triplet_loss": "BatchSemiHardTripletLoss",
    "info_nce_loss": "MultipleNegativesRankingLoss",
    "cosent_loss": "CoSENTLoss",
    "clip_loss": "ClipLoss",
    "siglip_loss": "SigLipLoss",
    "decoupled_contrastive_loss": "DCLLoss",
}
COLUMNS = ("what", "rows", "time", "extra memory", "beside", "its time", "its extra memory")


class Measured(NamedTuple):
    what: str
    rows: int
    cells: tuple[str, ...]  # time and memory
    other: str = "-"
    others: tuple[str, ...] = ("-", "-")


def cost(name: str) -> str:
    """The Markdown of a page between its markers."""
    row = CATALOG[MINED if name == "hardest_pairs" else name]
    text = growth(name, row)
    if row.products:
        times = "products" if row.products != 1 else "product"
        text += f" Forward and backward take {row.products:g} {times} of all pairs at the fewest."
    found_tables = [table(path, found) for path in result_files() if (found := [*measured(name, path)])]
    return "\n\n".join([wrapped(text), *(found_tables or ["It has not been measured yet."])]) + "\n"


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def growth(name: str, row: Loss) -> str:
    if name in OWN_GROWTH:
        return OWN_GROWTH[name]
    if row.named(Role.CLASSES):
        return OF_CLASSES if row.products else OF_CENTERS
    return GROWTH[row.family]


def result_files() -> list[Path]:
    """The newest of each kind on a CPU."""
    kinds = ("cpu", "cpu-classes", "dense", "drop-ins")
    return [max(RESULTS.glob(f"{kind}-[0-9]*.json")) for kind in kinds]


def measured(name: str, path: Path) -> Iterator[Measured]:
    """Of every case of a loss the most rows beside another implementation, and the most of all, with all threads."""
    results = json.loads(path.read_text())
    if "drop_ins" in results:
        yield from (as_drop_in(row) for row in results["drop_ins"] if row["loss"] == DROP_INS.get(name))
        return
    rows = results.get("rows") or results["beside_dense"]
    most = max(row.get("threads", 0) for row in rows)
    for case in [case for case, of in CASES.items() if of.loss == name]:
        of_case = [row for row in rows if row["case"] == case and row.get("threads", 0) == most]
        sizes = {bool(other_of(row)): row for row in sorted(of_case, key=lambda row: row["n"])}
        yield from (beside(case, row) for _, row in sorted(sizes.items(), reverse=True))


def other_of(row: dict[str, Any]) -> str:
    return next((key for key, of in row.items() if isinstance(of, dict) and "seconds" in of and key != OURS), "")


def beside(case: str, row: dict[str, Any]) -> Measured:
    found, other = Measured(case, row["n"], shown(row[OURS])), other_of(row)
    return found._replace(other=LABELS.get(other, other), others=shown(row[other])) if other else found


def as_drop_in(row: dict[str, Any]) -> Measured:
    theirs = drop_ins.shown(row[drop_ins.LIBRARY])
    package = drop_ins.PACKAGES[row["module"]]
    return Measured(f"`{row['loss']}`", row["n"], drop_ins.shown(row[drop_ins.DROP_IN]), package, theirs)


def shown(of: dict[str, float]) -> tuple[str, str]:
    return tables.seconds(of["seconds"]), tables.size(of["peak_bytes"])


def table(path: Path, found: list[Measured]) -> str:
    meta = json.loads(path.read_text())["meta"]
    source = f"[{path.stem}](../../bench/results/{path.name})"
    title = "As a [drop-in](../drop_ins.md), forward" if path.stem.startswith("drop-ins") else "Forward"
    cells = [[m.what, f"{m.rows:,}", *m.cells, m.other, *m.others] for m in found]
    where = f"{meta['cores']} cores of an {meta['device']}"
    above = f"{title} and backward, float32, D = {D}, on {where} ({source}), not yet on a GPU:"
    return f"{wrapped(above)}\n\n{tables.markdown(COLUMNS, cells)}"


# ------------------------------------------------------------------------------------------------------------- cards


def page_of(name: str) -> Path:
    return FOLDER / f"{name}.md"


def card(name: str) -> str:
    title, _names, sentence = page_of(name).read_text().split("\n\n")[:3]
    title = title.removeprefix("# ")
    parts = (f"[![{title}](images/{name}.svg)]({name}.md)", f"**[{title}]({name}.md)**", " ".join(sentence.split()))
    return "-   " + "\n\n    ".join(parts)


def cards() -> str:
    """The Markdown of the index between its markers."""
    groups = ("\n\n".join([f"## {title}", '<div class="grid cards" markdown>', *map(card, names), "</div>"])
              for title, names in GROUPS.items())  # fmt: skip
    return "\n\n".join(groups) + "\n"


def main() -> None:
    for name in NAMES:
        page_of(name).write_text(COST.sub(lambda _: cost(name), page_of(name).read_text()))  # noqa: B023
    INDEX.write_text(CARDS.sub(lambda _: cards(), INDEX.read_text()))


if __name__ == "__main__":
    main()
