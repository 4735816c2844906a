"""A call on a GPU, told before it is done: its launches, their traffic, and a roofline.

The bytes come from the plan, and tests count them. The time is a prediction for an H100 from its
bandwidth and a usual cost of a launch: nothing was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from projgen.bind import Binding
from projgen.cuda.compiler import Compiled
from projgen.cuda.traffic import BANDWIDTH, LAUNCH, Traffic, predict, roofline
from projgen.terminal import (
    TIMES,
    Terminal,
    format_bytes,
    format_count,
    format_seconds,
    format_shape,
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain` found out; `to_json` for programs, `draw` for people."""

    binding: Binding
    compiled: Compiled
    shape: tuple[int, ...]
    order: str
    traffic: tuple[Traffic, ...]

    @property
    def array_bytes(self) -> int:
        plan = self.compiled.plan
        return plan.leaf.size * plan.itemsize

    @property
    def bytes(self) -> int:
        """All that is read and written, at most."""
        return sum(launch.bytes for launch in self.traffic)

    @property
    def memcpy(self) -> int:
        """The bytes that a copy of the array moves."""
        return 2 * self.array_bytes

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        plan, schedule = self.compiled.plan, self.compiled.schedule
        return {
            "spec": self.binding.tree.spec,
            "shape": self.shape,
            "dtype": plan.dtype,
            "order": self.order,
            "in_place": plan.in_place,
            "backend": "cuda",
            "is_euclidean": self.binding.tree.is_euclidean,
            "simplified": plan.layout.spec,
            "launches": [
                {**asdict(t.launch), "reads": t.reads, "writes": t.writes, "turn": t.turn}
                for t in self.traffic
            ],
            "bytes": {
                "array": self.array_bytes,
                "memcpy": self.memcpy,
                "at_most": self.bytes,
                "multiple_of_memcpy": self.bytes / self.memcpy,
                "workspace": schedule.work,
            },
            "prediction": {
                "device": "H100",
                "seconds": roofline(self.traffic),
                "bytes_per_second": BANDWIDTH,
                "seconds_per_launch": LAUNCH,
            },
        }

    def draw(self, terminal: Terminal) -> None:
        """For people, in 80 columns."""
        for number, section in enumerate((_title, _launches, _memory, _prediction)):
            terminal.write(*([""] if number else []), *section(self, terminal))


def explain(
    binding: Binding, compiled: Compiled, shape: tuple[int, ...], order: str
) -> Explanation:
    """Explain what a GPU does with arrays of `shape` in memory order `order`."""
    traffic = predict(compiled.plan, compiled.kernel, compiled.schedule)
    return Explanation(binding, compiled, shape, order, traffic)


def _title(e: Explanation, terminal: Terminal) -> Iterator[str]:
    plan = e.compiled.plan
    yield terminal.paint(e.binding.tree.spec, "bold")
    yield (
        f"{plan.dtype}  {format_shape(e.shape)}  {e.order} order  {format_bytes(e.array_bytes)}  "
        f"{'in place' if plan.in_place else 'to a new array'}  on a GPU"
    )


def _launches(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("LAUNCHES", "one stream, no host in between")
    yield terminal.paint(f"  {'':13}{'blocks of threads':>18}  {'reads':28}writes", "dim")
    for t in e.traffic:
        grid = f"{t.launch.grid[0]:,}" + (f" {TIMES} {t.launch.grid[1]}" * (t.launch.grid[1] > 1))
        blocks = f"{grid} of {t.launch.block[0]}"
        level = int(t.launch.name.rpartition("_")[2]) if "_" in t.launch.name else -1
        name = f"{'*' if t.turn else ' '} {t.launch.name:13}"
        text = f"{name}{blocks:>18}  {_arrays(t.reads):28}{_arrays(t.writes)}"
        yield terminal.level(level, text)
    if any(len(arrays) > 1 for t in e.traffic for arrays in (t.reads, t.writes)):
        yield "  + n: and n smaller arrays"
    if any(t.turn for t in e.traffic):
        yield "  *: a turn of the search for thresholds; one that has ended reads no more"


def _arrays(arrays: dict[str, int]) -> str:
    """The largest with its size, and how many others there are."""
    name = max(arrays, key=lambda name: arrays[name])
    others = len(arrays) - 1
    return f"{name} {format_bytes(arrays[name])}{f' + {others}' if others else ''}"


def _memory(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("MEMORY", "in multiples of copying the array")
    yield (
        f"  at most {e.bytes / e.memcpy:.2f} {TIMES}, {format_bytes(e.bytes)}; workspace "
        f"{format_bytes(e.compiled.schedule.work)}"
    )
    yield "  Bytes count once for each launch. Groups that vanish are not read in sweep 2."


def _prediction(e: Explanation, terminal: Terminal) -> Iterator[str]:
    yield terminal.heading("PREDICTION", "for an H100; nothing was measured")
    launches = format_count(len(e.traffic), "launch")
    yield (
        f"  {format_seconds(roofline(e.traffic))}: {format_bytes(e.bytes)} at "
        f"{BANDWIDTH / 1e12:.2f} TB/s, and {launches} of {format_seconds(LAUNCH)} each"
    )
