"""The parts of a tree on a GPU, told before they run: see `projgen.part_sweeps`.

Values are copied to where the part above joins them, one launch for each sweep; that is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from projgen.compiler import Loadable
from projgen.cuda.compiler import Compiled
from projgen.cuda.groups import GroupWalk
from projgen.cuda.traffic import Traffic, predict
from projgen.dtypes import ITEMSIZE
from projgen.norms import NORMS
from projgen.part_sweeps import VALUE_BYTES, Sweep


@dataclass(frozen=True, eq=False)
class CudaChainSweep(Sweep):
    """A run of levels."""

    compiled: Compiled

    @property
    def kernel(self) -> Loadable:
        return self.compiled

    @property
    def title(self) -> str:
        return self._titled("chain", self.compiled.plan.in_place)

    @property
    def notes(self) -> Iterator[str]:
        _, *lines = str(self.compiled.plan).splitlines()
        yield from lines

    @property
    def traffic(self) -> tuple[int, int]:
        launches = self._launched()
        copied = self.groups * VALUE_BYTES
        reads = sum(sum(launch.reads.values()) for launch in launches)
        return reads + copied, sum(sum(t.writes.values()) for t in launches) + copied

    @property
    def operations(self) -> int:
        stages = self.compiled.plan.stages
        return sum(stage.size * NORMS[stage.norm].operations for stage in stages)

    @property
    def launches(self) -> int:
        return len(self._launched()) + 1

    def _launched(self) -> tuple[Traffic, ...]:
        made = self.compiled
        traffic = predict(made.plan, made.kernel, made.schedule)
        return (*traffic[: made.schedule.norms], *traffic[made.schedule.down :])


@dataclass(frozen=True, eq=False)
class CudaGroupSweep(Sweep):
    """One level of any norm."""

    walk: GroupWalk
    in_place: bool

    @property
    def kernel(self) -> Loadable:
        return self.walk.kernel

    @property
    def title(self) -> str:
        return self._titled("group", self.in_place)

    @property
    def notes(self) -> Iterator[str]:
        yield from (f"  {note}" for note in self.walk.kernel.notes)

    @property
    def traffic(self) -> tuple[int, int]:
        kernel = self.walk.kernel
        weights = math.prod(self.shape) * ITEMSIZE[kernel.weight_dtype] * kernel.weighted
        values = 2 * self.groups * VALUE_BYTES
        return 2 * (self.array_bytes + weights) + values, self.array_bytes + values

    @property
    def operations(self) -> int:
        return math.prod(self.shape) * NORMS[self.walk.kernel.ball.norm].operations

    @property
    def launches(self) -> int:
        return 3


__all__ = ["CudaChainSweep", "CudaGroupSweep"]
