"""The loops of a kernel for NVIDIA GPUs, read from its SASS: what a turn of each issues, by classes of instructions.

A loop is a branch back to an instruction that all ways to the branch go through, and all that reaches the branch from
there; code that the assembler put elsewhere counts where it runs.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# The first that an instruction's name begins with; all others are "integer": addresses, masks, labels.
CLASSES = {
    "tensor": r"HGMMA|HMMA|IMMA|UTC\w*MMA",  # matrix products
    "mufu": r"MUFU|F2F\b|F2I|I2F\b|FRND",  # roots, exponentials, conversions: 16 lanes
    "select": r"FSEL|FSET|FMNMX|SEL|DSET",  # compares, selections, minima of floats
    "float": r"F(ADD|MUL|FMA)|H(ADD|MUL|FMA)2|D(ADD|MUL|FMA)|F2FP|I2FP",
    "spill": r"LDL|STL",
    "shared": r"LDSM?\b|STSM?\b|ATOMS|LDTM|STTM",  # and tensor memory
    "shuffle": r"SHFL|REDUX",
    "global": r"LD\b|LDG|STG|UTMA|UBLKCP|RED\b|ATOMG",  # and copies to shared memory
    "wait": r"WARP|BAR|DEPBAR|SYNCS|UTCBAR|FENCE|MEMBAR|BSSY|BSYNC|NANOSLEEP|ERRBAR",
    "move": r"MOV|IMAD\.MOV|CS2R|S2R|S2UR|LDC|NOP",
    "branch": r"BRA|EXIT|CALL|RET|BREAK|BPT",
    "uniform": r"U[A-Z]|R2UR",  # once for a warp, on a unit of its own
}
NAMES = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in CLASSES.items()))
GROUPS = r"HGMMA.*gsb|UTCBAR"  # products that are waited for together end with one of these
WAITS = r"WARPGROUP\.DEPBAR|SYNCS\.PHASECHK"  # for such a group
SPIN = 4  # a loop of fewer instructions waits for something and turns as long as it takes
RARE = 30  # more than so many instructions behind a branch may be left out
Lines = Sequence[str]


def loops(sass: str) -> list[dict[str, Any]]:
    """The outermost loops of a kernel, by address: of those that have matrix products if some have."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+\s+)?[A-Z][^;]*);", sass)
    lines = [text for _, text in found]
    ways = branches(lines, {int(at, 16): place for place, (at, _) in enumerate(found)})
    run = reached({0}, ways.__getitem__)
    bodies: dict[int, set[int]] = {}
    for place in sorted(run):
        for head in ways[place]:
            if head <= place and (head == 0 or place not in reached({0}, ways.__getitem__, head)):
                bodies.setdefault(head, set()).update(body(head, place, ways) & run)
    waiting = set().union(*(inside for inside in bodies.values() if len(inside) < SPIN))
    kept = {head: inside - waiting for head, inside in bodies.items() if len(inside) >= SPIN}
    return [described(head, kept, lines, ways) for head in useful(outermost(kept), kept, lines)]


def branches(lines: Lines, places: dict[int, int]) -> list[tuple[int, ...]]:
    """Where each instruction goes on. A warp's threads never come apart in these kernels (BRA.DIV)."""
    ways: list[tuple[int, ...]] = []
    for place, text in enumerate(lines):
        following: tuple[int, ...] = (place + 1,) if place + 1 < len(lines) else ()
        target = re.search(r"\bBRA(?!\.DIV)\S* .*?0x([0-9a-f]+)", text)
        if target:
            always = re.match(r"BRA\S* +0x", text)
            following = (*(() if always else following), places.get(int(target[1], 16), place))
        elif re.match(r"(EXIT|RET)\b", text):
            following = ()
        ways.append(following)
    return ways


def reached(start: Iterable[int], ways: Callable[[int], Iterable[int]], without: int | None = None) -> set[int]:
    seen, todo = set(start), deque(start)
    while todo:
        for place in ways(todo.popleft()):
            if place not in seen and place != without:
                seen.add(place)
                todo.append(place)
    return seen


def body(head: int, place: int, ways: Sequence[Iterable[int]]) -> set[int]:
    """All from which the branch at `place` is reached without its `head`, and the head."""
    into: dict[int, list[int]] = {}
    for at, following in enumerate(ways):
        for target in following:
            into.setdefault(target, []).append(at)
    return {head} | (reached({place}, lambda at: into.get(at, ()), head) if place != head else set())


def outermost(bodies: dict[int, set[int]], inside: set[int] | None = None) -> list[int]:
    """The heads of the loops that are in no other one, of all or of those inside a loop."""
    of = {h: b for h, b in bodies.items() if inside is None or (h in inside and b != inside and b <= inside)}
    return sorted(h for h, b in of.items() if not any(h in other and b < other for other in of.values()))


def useful(heads: list[int], bodies: dict[int, set[int]], lines: Lines) -> list[int]:
    """Those with products; else those with loops in them, since what is no product walks D one by one; else all."""
    with_products = [h for h in heads if any(kind(lines[i]) == "tensor" for i in bodies[h])]
    return with_products or [h for h in heads if outermost(bodies, bodies[h])] or heads


def kind(text: str) -> str:
    match = NAMES.match(re.sub(r"^@\S+\s+", "", text))
    return str(match.lastgroup) if match else "integer"


def described(head: int, bodies: dict[int, set[int]], lines: Lines, ways: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """A loop: its instructions, products' groups and waits without those of the loops in it; how many of them a branch
    may leave out; and the loops in it."""
    inside = bodies[head]
    inner = outermost(bodies, inside)
    nested = set().union(*(bodies[h] for h in inner))
    left_out: set[int] = set()
    for place in inside - nested:
        kept = [way for way in ways[place] if way in inside]
        ahead = [reached({way} - {head}, lambda at: inside.intersection(ways[at]), head) for way in kept]
        for one, other in itertools.permutations(ahead, 2):
            only = one - other
            left_out |= only if len(only) > RARE and not only & nested else set()
    own = [lines[i] for i in sorted(inside - nested)]
    return {
        "classes": dict(Counter(map(kind, own))),
        "groups": sum(bool(re.search(GROUPS, text)) for text in own),
        "waits": sum(bool(re.search(WAITS, text)) for text in own),
        "skippable": len(left_out),
        "inner": [described(h, bodies, lines, ways) for h in inner],
    }


def inner_loops(loop: dict[str, Any], turns: Sequence[float]) -> list[tuple[dict[str, Any], float]]:
    return [(inner, turns[i] if i < len(turns) else 1) for i, inner in enumerate(loop["inner"])]


def issued(loop: dict[str, Any], turns: Sequence[float] = ()) -> dict[str, float]:
    """Instructions of a turn by class; the loops in it turn as often as `turns` says, or once."""
    sums: dict[str, float] = dict(loop["classes"])
    for inner, times in inner_loops(loop, turns):
        for name, number in issued(inner).items():
            sums[name] = sums.get(name, 0) + times * number
    return sums


def counted(loop: dict[str, Any], name: str, turns: Sequence[float] = ()) -> float:
    """The same of "groups" or "waits"."""
    return float(loop[name] + sum(times * counted(inner, name) for inner, times in inner_loops(loop, turns)))


def summary(loop: dict[str, Any]) -> dict[str, Any]:
    """What the report keeps of a loop: all with the loops in it, each of them once."""
    classes = issued(loop)
    by_size = dict(sorted(classes.items(), key=lambda item: -item[1]))
    inner = [sum(issued(one).values()) for one in loop["inner"]]
    return {
        "instructions": sum(classes.values()), "classes": by_size,
        **{name: round(counted(loop, name)) for name in ("groups", "waits")},
        "spills": classes.get("spill", 0), "skippable": loop["skippable"], "inner": inner,
    }  # fmt: skip
