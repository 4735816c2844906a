"""What a CUDA kernel is: all that the templates may know, and nothing that they need not.

A `Kernel` says which functions the source has and how they find their values in memory. Extents
do not reach the source, but for those that are baked in: they arrive in the ``Geometry``, a struct
that every launch is given by value. `projgen.cuda.launches` says how to launch the functions.
"""

import re
from dataclasses import dataclass

from projgen.cuda.levels import REALS, STORED, Level, StageCode
from projgen.norms import NORMS


@dataclass(frozen=True)
class Kernel:
    """All that the templates of the CUDA backend may know."""

    title: str
    dtype: str
    notes: tuple[str, ...]
    in_place: bool
    positive: bool  # negative values of y count as 0, and become 0
    wide: bool  # offsets are 64-bit
    stages: tuple[StageCode, ...]  # with launches of their own, the outermost first
    levels: tuple[Level, ...]  # above them, in one launch, the root first
    offsets: tuple[str, ...]  # fields of the geometry: bytes of the workspace,
    cells: tuple[str, ...]  # and extents, steps and the like
    sweeps: int
    sample: int
    version: int

    def used(self, names: tuple[str, ...], text: str) -> tuple[str, ...]:
        """The fields of the geometry that a source looks up."""
        found = set(re.findall(r"\bgeo\.(\w+)", text))
        return tuple(name for name in names if name in found)

    def calls(self, name: str, text: str) -> bool:
        """Whether a source calls this function."""
        return re.search(rf"\b{name}\(", text) is not None

    @property
    def index(self) -> str:
        """The C++ type of offsets and counts."""
        return "long long" if self.wide else "int"

    @property
    def leaf(self) -> StageCode:
        return self.stages[-1]

    @property
    def everything(self) -> tuple[StageCode | Level, ...]:
        return (*self.levels, *self.stages)

    @property
    def stored(self) -> str:
        return STORED[self.dtype]

    @property
    def real(self) -> str:
        return REALS[self.dtype]

    @property
    def reals(self) -> tuple[str, ...]:
        """The C++ types that values are worked on in."""
        return tuple(sorted({s.real for s in self.everything}, reverse=True))

    def maxima(self, real: str) -> bool:
        """Whether some level takes maxima of values of this C++ type."""
        found = (NORMS[s.norm].accumulates for s in self.everything if s.real == real)
        return "max" in found

    def squares(self, real: str) -> bool:
        """Whether some level adds up squares of values of this C++ type."""
        return any(NORMS[s.norm].squares for s in self.everything if s.real == real)

    def magnitudes(self, real: str) -> bool:
        """Whether some level adds up magnitudes of values of this C++ type."""
        norms = [NORMS[s.norm] for s in self.everything if s.real == real]
        return any(norm.accumulates == "sum" and not norm.squares for norm in norms)

    @property
    def compensated(self) -> bool:
        """Whether sums of float are carried in two of them."""
        return self.magnitudes("float") or self.squares("float")

    @property
    def scaled(self) -> bool:
        """Whether sums of float may leave its range, and are scaled."""
        return self.dtype != "float16"

    @property
    def wide_range(self) -> bool:
        return self.dtype == "float64" and self.squares("double")

    @property
    def swept(self) -> tuple[str, ...]:
        """The C++ types of groups whose thresholds are looked for in turns of all blocks."""
        return tuple(sorted({s.real for s in self.stages if s.threshold == "sweep"}))

    @property
    def joins(self) -> tuple[tuple[str, str, bool], ...]:
        """What teams join: an operation, a C++ type, and whether blocks do so, not warps alone."""
        found: dict[tuple[str, str], bool] = {}
        for s in self.everything:
            for operation, type_, who in s.joins:
                key = (operation, type_)
                found[key] = found.get(key, False) or who == "block"
        return tuple((*key, by_block) for key, by_block in sorted(found.items()))
