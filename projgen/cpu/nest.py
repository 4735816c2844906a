"""How a function visits a stage's array: loops in memory order, offsets, the index of a group."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from projgen.stage import Cut, Stage, Walk


@dataclass(frozen=True, slots=True)
class Counter:
    """``for name in range(first, last)``; the strides name its steps in memory."""

    name: str
    first: str
    last: str
    stride: str
    out_stride: str

    def whole(self, turns: int) -> str:
        """Where the last of its turns that come by so many ends."""
        count = self.last if self.first == "0" else f"({self.last} - {self.first})"
        return f"{self.last} - {count} % {turns}"


@dataclass(frozen=True, slots=True)
class Nest:
    """How a function visits its block of a stage's array.

    ``loops`` enclose the innermost ``run``; ``groups`` are those of them that run over groups.
    ``beside`` is the reduced loop next to the run of a columns walk, which is not in ``loops``:
    several of its turns are read together. ``group`` is the index of the run's (first) group.
    """

    loops: tuple[Counter, ...]
    groups: tuple[Counter, ...]
    beside: Counter | None
    run: Counter
    group: str

    def at(self, *also: Counter) -> str:
        """The offset in the array of what `loops` and `also` have come to."""
        return _sum(f"{c.name} * {c.stride}" for c in (*self.loops, *also))

    def out_at(self, *also: Counter) -> str:
        return _sum(f"{c.name} * {c.out_stride}" for c in (*self.loops, *also))


def nest(stage: Stage, cut: Cut) -> Nest:
    """The loops of one block of `stage`, cut as `cut` says."""
    axes = stage.axes
    counters = [
        Counter(
            f"i{i}", *(("first", "last") if i == cut.loop else ("0", f"n{i}")), f"s{i}", f"t{i}"
        )
        for i in range(len(axes))
    ]
    if stage.inner and cut.loop != len(axes) - 1:
        counters[-1] = replace(counters[-1], last=str(stage.inner))
    # Two loops are the body's own in packed groups, and in columns with a reduction beside them.
    beside = stage.walk is Walk.PACKED or (stage.walk is Walk.COLUMNS and _reduced_beside(stage))
    outside = range(len(axes) - (2 if beside else 1))
    across = [i for i in outside if not axes[i].reduced]
    # Where groups lie beside each other in the body, the index is that of the first one.
    body_groups = {
        Walk.ROWS: "",
        Walk.COLUMNS: f"n{len(axes) - 1}",
        Walk.PACKED: f"n{len(axes) - 2}",
    }
    return Nest(
        loops=tuple(counters[i] for i in outside),
        groups=tuple(counters[i] for i in across),
        beside=counters[-2] if beside else None,
        run=counters[-1],
        group=_index(across, body_groups[stage.walk]),
    )


def _reduced_beside(stage: Stage) -> bool:
    return len(stage.axes) > 1 and stage.axes[-2].reduced


def _index(loops: list[int], times: str) -> str:
    """The dense index over the turns of `loops`, in memory order, times `times`."""
    index = ""
    for i in loops:
        index = (
            f"({index}) * n{i} + i{i}"
            if "+" in index
            else (f"{index} * n{i} + i{i}" if index else f"i{i}")
        )
    if index and times:
        index = f"({index}) * {times}" if "+" in index else f"{index} * {times}"
    return index or "0"


def _sum(terms: Iterator[str]) -> str:
    return " + ".join(terms) or "0"
