"""The kernel of one level of groups, of any norm, on a GPU: what its source depends on.

A warp takes a group, or where groups are long a block of threads does; so a few groups of more than
some 10^5 values are not its strength. How arrays lie arrives at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

from projgen.cpu.ball import Ball
from projgen.dtypes import ITEMSIZE
from projgen.render import render_cuda_group

VERSION = 1  # of the generated code
BALLS = ("l1", "l2", "linf", "lp", "l0", "simplex")  # the norms that have such a kernel
_STORED = {"float32": "float", "float64": "double"}


@dataclass(frozen=True, slots=True)
class GroupKernel:
    """All that the template may know.

    ``warps``: each takes a group; else blocks do. ``line``: a group's elements are one run. Weights
    are of ``weight_dtype``.
    """

    ball: Ball
    dtype: str
    warps: bool
    line: bool
    weight_dtype: str = "float64"
    version: int = VERSION

    @property
    def title(self) -> str:
        return self.ball.title

    @property
    def macros(self) -> str:
        """The template that holds the norm's."""
        return f"cuda/balls/{self.ball.norm}.cu.j2"

    @property
    def notes(self) -> tuple[str, ...]:
        takes = "a warp takes a group" if self.warps else "a block of threads takes a group"
        if self.labelled:
            lie = "the elements of a group lie anywhere along an axis: each has an offset"
        elif self.line:
            lie = "the elements of a group are equally far apart"
        else:
            lie = "the elements of a group are runs, equally far apart in each"
        again = ("each step of a search reads its group again",) * self.searches
        return takes, lie, *again

    @property
    def searches(self) -> bool:
        """Whether a group's level has no formula."""
        alike = self.ball.norm == "l2" and not self.weighted
        return self.ball.norm != "linf" and not alike

    @property
    def half(self) -> bool:
        return ITEMSIZE[self.dtype] == 2

    @property
    def stored(self) -> str:
        return _STORED.get(self.dtype, "unsigned short")

    @property
    def weighted(self) -> bool:
        return self.ball.weighted

    @property
    def weight_type(self) -> str:
        return _STORED[self.weight_dtype]

    @property
    def labelled(self) -> bool:
        return self.ball.ragged

    @property
    def signed(self) -> bool:
        """Whether values have their signs: they may become 0 or positive, even inside the ball."""
        return self.ball.norm == "simplex"

    @property
    def positive(self) -> bool:
        return self.ball.nonneg and not self.signed

    @property
    def counts(self) -> str:
        """In words, how a value does."""
        if self.signed:
            return "as it is"
        return "below 0 as 0, but an infinity is noticed" if self.positive else "without its sign"

    @property
    def p(self) -> str:
        """The exponent of `lp`."""
        return repr(float(self.ball.p or 0.0))

    @property
    def last_bit(self) -> int:
        """The lowest bit of a float64 that may be set in a value."""
        return 0 if self.dtype == "float64" else 29

    @property
    def relative(self) -> bool:
        """Whether the search wants to know the norm."""
        return self.ball.norm in ("l2", "lp")

    @property
    def maxima(self) -> bool:
        return self.ball.norm != "simplex"

    @property
    def joins(self) -> tuple[tuple[str, str], ...]:
        """What a team joins: an operation, a C++ type."""
        sums = (("sum", "double"),) if self.ball.norm != "linf" else ()
        tops = self.weighted or self.ball.norm != "l0"
        return (*sums, ("max", "long long")) if tops else sums

    @property
    def arrays(self) -> tuple[str, ...]:
        return ("y", "x", *("w",) * self.weighted)

    @property
    def cells(self) -> tuple[str, ...]:
        """The numbers at the head of the geometry."""
        known = ("groups", "extent") if self.warps else ("extent",)
        if self.labelled:
            return *known, "labels", "starts"
        return *known, "count", *("run",) * (not self.line)

    @property
    def places(self) -> tuple[str, ...]:
        """Those of each array."""
        if self.labelled:
            return "bases", "offsets", "lane"
        return ("bases", *("offsets",) * (not self.line), "lane", "step")

    @property
    def threads(self) -> int:
        """Of a block: so many leave registers for the search of `lp`."""
        return 256

    @property
    def source(self) -> str:
        """CUDA C++."""
        return render_cuda_group(self)
