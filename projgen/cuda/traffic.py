"""What each launch reads and writes, told before it is done.

Bytes are counted once for each launch, however many threads ask for them: what caches see more of
is not memory's. It is the most that can happen: groups that vanish are not read again in sweep 2,
those that stay as they are are not even written in place, and a search for thresholds that has
ended reads no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from projgen.cuda.kernel import Kernel
from projgen.cuda.launches import SIZES, Launch, Schedule
from projgen.cuda.levels import StageCode
from projgen.plan import Plan

BANDWIDTH = 3.35e12  # bytes a second: an H100's memory, as NVIDIA states it
LAUNCH = 2.5e-6  # seconds from one launch to the next on a stream: a usual figure, not measured


@dataclass(frozen=True, slots=True)
class Traffic:
    """A launch and the bytes that it moves at most, by array.

    ``turn``: it is one of the turns of a search, which may have ended before.
    """

    launch: Launch
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    turn: bool = False

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


def predict(plan: Plan, kernel: Kernel, schedule: Schedule) -> tuple[Traffic, ...]:
    """The traffic of all launches of a call with one radius for the whole batch."""
    return tuple(_Predictor(plan, kernel, schedule).launches())


def roofline(traffic: tuple[Traffic, ...]) -> float:
    """Seconds that a call takes on an H100 if memory and launches are all that counts."""
    return sum(launch.bytes for launch in traffic) / BANDWIDTH + len(traffic) * LAUNCH


class _Predictor:
    def __init__(self, plan: Plan, kernel: Kernel, schedule: Schedule) -> None:
        self.plan = plan
        self.kernel = kernel
        self.schedule = schedule
        self.sizes = {part.name: part.bytes for part in schedule.parts}

    def launches(self) -> Iterator[Traffic]:
        by_level = {s.level: s for s in self.kernel.stages}
        for launch in self.schedule.launches:
            name, _, level = launch.name.partition("_")
            if name == "middle":
                yield self.middle(launch)
                continue
            stage = by_level[int(level)]
            reads, writes = getattr(self, name)(stage, launch)
            yield Traffic(launch, reads, writes, name in ("above", "finish"))

    def parts(self, *names: str) -> dict[str, int]:
        return {name: self.sizes[name] for name in names}

    def array(self, s: StageCode) -> dict[str, int]:
        if s.leaf:
            return {"y": s.stage.size * self.plan.itemsize}
        return self.parts(s.source)

    def radii(self, s: StageCode) -> dict[str, int]:
        return {} if s.root else self.parts(s.limits)

    def aggregate(self, s: StageCode, launch: Launch) -> tuple[dict[str, int], dict[str, int]]:
        return self.array(s), self.parts(f"slots_{s.level}" if s.slotted else s.values)

    def combine(self, s: StageCode, launch: Launch) -> tuple[dict[str, int], dict[str, int]]:
        return self.parts(f"slots_{s.level}"), self.parts(s.values)

    def middle(self, launch: Launch) -> Traffic:
        levels, top = self.kernel.levels, self.kernel.stages[0]
        reads = {level.source: self.sizes[level.source] for level in levels}
        reads |= self.parts("total", *(f"u{level.level}" for level in levels[:-1]))
        writes = self.parts(*(level.values for level in levels))
        writes |= self.parts(*(f"u{level.level}" for level in levels[:-1]), top.limits)
        if top.slotted:
            reads |= self.parts(f"slots_{top.level}")
            writes |= self.parts(levels[-1].source)
        return Traffic(launch, reads, writes)

    def start(self, s: StageCode, launch: Launch) -> tuple[dict[str, int], dict[str, int]]:
        sample = min(s.stage.group_size, self.kernel.sample) * s.stage.groups
        itemsize = self.plan.itemsize if s.leaf else 8
        source = "y" if s.leaf else s.source
        reads = {source: sample * itemsize, **self.parts(s.values), **self.radii(s)}
        return reads, {f"guess_{s.level}": self.guess(s)}

    def guess(self, s: StageCode) -> int:
        """The bytes of one turn's thresholds."""
        return s.stage.groups * SIZES[s.real]

    def refined(self, s: StageCode) -> dict[str, int]:
        """What the last turn left behind: one of two sets of partial sums."""
        level = s.level
        return {
            **self.parts(s.values),
            **self.radii(s),
            f"sums_{level}": self.sizes[f"sums_{level}"] // 2,
            f"counts_{level}": self.sizes[f"counts_{level}"] // 2,
        }

    def above(self, s: StageCode, launch: Launch) -> tuple[dict[str, int], dict[str, int]]:
        level = s.level
        reads = {**self.array(s), f"guess_{level}": self.guess(s)}
        writes = {
            f"sums_{level}": self.sizes[f"sums_{level}"] // 2,
            f"counts_{level}": self.sizes[f"counts_{level}"] // 2,
        }
        if launch.arguments[-1]:  # the first turn has nothing to go by but the guess
            reads |= self.refined(s)
            writes |= {f"guess_{level}": self.guess(s), **self.parts(f"limit_{level}")}
        return reads, writes

    def finish(self, s: StageCode, launch: Launch) -> tuple[dict[str, int], dict[str, int]]:
        level = s.level
        reads = {f"guess_{level}": self.guess(s), **self.refined(s)}
        return reads, {f"guess_{level}": self.guess(s), **self.parts(f"limit_{level}")}

    def project(self, s: StageCode, launch: Launch) -> tuple[dict[str, int], dict[str, int]]:
        reads = self.array(s)
        if s.threshold == "sweep":
            reads |= self.parts(f"limit_{s.level}")
        else:
            reads |= self.radii(s)
            reads |= self.parts(s.values) if s.root or s.threshold else {}
        if s.leaf:
            target = "y" if s.in_place else "x"
            return reads, {target: s.stage.size * self.plan.itemsize}
        assert s.child is not None, "a level that is not the leaf has a child"
        return reads, self.parts(s.child.limits)


__all__ = ["BANDWIDTH", "LAUNCH", "Traffic", "predict", "roofline"]
