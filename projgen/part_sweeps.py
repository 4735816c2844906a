"""What a part of a tree does to an array, told before it is done: one kernel, and what it moves."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from projgen.compiler import Compiled, Loadable
from projgen.cpu.group_kernel import GroupKernel
from projgen.cpu.walks import Walk
from projgen.dtypes import ITEMSIZE
from projgen.norms import NORMS

VALUE_BYTES = 8  # of one value, radius or weight: float64


@dataclass(frozen=True, eq=False)
class Sweep(ABC):
    """One kernel on one array, or on a piece of it whose blocks have one size.

    ``groups`` values come of an array of ``shape``.
    """

    shape: tuple[int, ...]
    dtype: str
    groups: int

    @property
    @abstractmethod
    def kernel(self) -> Loadable:
        """What is compiled for it: it has a ``source``."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The kernel in words: its kind, what it does, on which dtype, to where."""

    @property
    @abstractmethod
    def notes(self) -> Iterator[str]:
        """How it works, line by line."""

    @property
    @abstractmethod
    def traffic(self) -> tuple[int, int]:
        """The bytes that it reads and writes at most, up and down together."""

    @property
    @abstractmethod
    def operations(self) -> int:
        """An estimate, without the searches."""

    @property
    def newton_bytes(self) -> int:
        """The bytes that each Newton step reads once more."""
        return 0

    @property
    def launches(self) -> int:
        """Of a GPU: up and down together."""
        return 0

    @property
    def array_bytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    def _titled(self, kind: str, in_place: bool) -> str:
        where = "in place" if in_place else "y -> x"
        return f"{kind} {self.kernel.title}, {self.dtype}, {where}"


@dataclass(frozen=True, eq=False)
class ChainSweep(Sweep):
    """A run of levels, on the CPU."""

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
        from projgen.explain import steps_of

        steps = [step for step in steps_of(self.compiled.plan) if not step.repeated]
        reads = sum(sum(step.reads.values()) for step in steps)
        return reads, sum(sum(step.writes.values()) for step in steps)

    @property
    def operations(self) -> int:
        stages = self.compiled.plan.stages
        return sum(stage.size * NORMS[stage.norm].operations for stage in stages)

    @property
    def newton_bytes(self) -> int:
        from projgen.explain import steps_of

        return sum(step.bytes for step in steps_of(self.compiled.plan) if step.repeated)


@dataclass(frozen=True, eq=False)
class GroupSweep(Sweep):
    """One level of any norm, on the CPU."""

    walk: Walk[GroupKernel]

    @property
    def kernel(self) -> Loadable:
        return self.walk.kernel

    @property
    def title(self) -> str:
        return self._titled("group", self.walk.kernel.in_place)

    @property
    def notes(self) -> Iterator[str]:
        yield from (f"  {note}" for note in self.walk.kernel.notes)

    @property
    def traffic(self) -> tuple[int, int]:
        kernel = self.walk.kernel
        weights = math.prod(self.shape) * ITEMSIZE[kernel.weight_dtype]
        own = self.array_bytes + kernel.ball.weighted * weights
        values = self.groups * VALUE_BYTES
        return 2 * own + values, self.array_bytes + values

    @property
    def operations(self) -> int:
        return math.prod(self.shape) * NORMS[self.walk.kernel.ball.norm].operations


__all__ = ["VALUE_BYTES", "ChainSweep", "GroupSweep", "Sweep"]
