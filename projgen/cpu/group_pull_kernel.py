"""The kernel that takes gradients back through one level of groups: what its source depends on.

Like the kernel of a projection it has two sweeps. The first sums what each group's radius gets, the
second writes the gradients of the values: their share of that of the projection, and what reached
the group's value from above. It is told what the projection found, so nothing is searched for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from projgen.cpu.ball import Ball
from projgen.cpu.group_numbers import taylor_of_exp
from projgen.cpu.group_pull_rules import RULES, Rule
from projgen.cpu.lower import VERSION
from projgen.cpu.walks import ABREAST, CELLS
from projgen.render import render_group_pull

GATHERS, SHARES = 1, 2  # what a call is asked for; with neither, for the gradients of the radii


@dataclass(frozen=True)
class GroupPullKernel:
    """A kernel; equal ones have equal sources.

    ``walk``: "rows", whose groups lie anywhere as runs; "columns", groups side by side; "labels",
    labelled elements in the order of the array. ``contiguous``: of y and the weights, those whose
    neighbours in the inner loop are neighbours in memory; x and the gradients lie as y does.
    ``depth``: how many levels of its tree stand above it; 2 for more.
    """

    ball: Ball
    dtype: str
    walk: str
    contiguous: frozenset[str]
    weight_dtype: str
    depth: int

    searches: bool = field(default=False, init=False)
    shares_cell: int = field(default=32, init=False)
    version: int = field(default=VERSION, init=False)

    @property
    def title(self) -> str:
        return self.ball.title

    @property
    def notes(self) -> tuple[str, ...]:
        if self.columns:
            return (f"groups lie side by side in memory: {self.lanes} are worked on together",)
        if self.labelled:
            return ("labelled elements are read as they lie, and added up by label",)
        if self.units["y"]:
            return ("a group's runs are contiguous in memory",)
        return ("a group's runs have a step between elements",)

    @property
    def columns(self) -> bool:
        return self.walk == "columns"

    @property
    def labelled(self) -> bool:
        return self.walk == "labels"

    @property
    def several(self) -> bool:
        """Whether several groups are swept together."""
        return self.walk != "rows"

    @property
    def lanes(self) -> int:
        """How many groups lie side by side."""
        return ABREAST if self.columns else 1

    @property
    def rises(self) -> bool:
        """Whether anything reaches its groups' values: nothing does at the root."""
        return self.depth > 0

    @property
    def linear(self) -> bool:
        """Whether the ball scales all of a group alike."""
        return self.ball.norm == "l2" and not self.ball.weighted

    @property
    def directed(self) -> bool:
        """Whether signs are made up for, of elements whose rule is one of magnitudes."""
        return not self.linear and self.ball.norm not in ("l0", "simplex")

    @property
    def halves(self) -> int:
        """How many halves make p - 1, if there are a few; else 0."""
        twice = 2 * (self.ball.p - 1) if self.ball.p is not None else 0.0
        return int(twice) if twice in (1, 2, 3, 4, 5, 6) else 0

    @property
    def powers(self) -> bool:
        """Whether powers are taken by logarithms."""
        return self.ball.norm == "lp" and not self.halves

    @property
    def factorials(self) -> tuple[str, ...]:
        return taylor_of_exp()

    @property
    def nonneg(self) -> bool:
        """Whether values below 0 count as 0, and get no gradient."""
        return self.ball.nonneg and self.ball.norm != "simplex"

    @property
    def alive(self) -> str:
        """Of a group with value v and radius u: whether it is outside its ball, and left."""
        return "u > 0" if self.ball.norm == "simplex" else "0 < u < v"

    @property
    def summed(self) -> str:
        """Of which groups anything has to be summed. Equal largest values are counted of all groups
        that something may rise to: see `projgen.cpu.pull_kernel.PullCode.idles`."""
        return "v > 0" if self.ball.norm == "linf" and self.depth > 1 else self.alive

    @property
    def _rules(self) -> tuple[Rule, ...]:
        weighted = self.ball.norm == "l2" and self.ball.weighted
        rule = RULES["l2 with weights" if weighted else self.ball.norm]
        return (rule, rule.rising) if self.rises and rule.rising else (rule,)

    @property
    def sums(self) -> tuple[str, ...]:
        """What the first sweep sums, group by group."""
        return tuple(name for rule in self._rules for name in rule.sums)

    @property
    def gather_needs(self) -> tuple[str, ...]:
        """What it needs to know of each group: its radius u, its value v."""
        return tuple(name for rule in self._rules for name in rule.asks)

    @property
    def item_needs(self) -> tuple[str, ...]:
        """The same, with what says whether anything is summed of it."""
        return tuple(name for name in "vu" if name in self.gather_needs or name in self.summed)

    @property
    def share_needs(self) -> tuple[str, ...]:
        """What the second sweep needs to know of each group."""
        return tuple(name for rule in self._rules for name in rule.known)

    @property
    def weigh_needs(self) -> tuple[str, ...]:
        """What that is worked out of."""
        return tuple(name for rule in self._rules for name in rule.by)

    @property
    def settle_needs(self) -> tuple[str, ...]:
        """What the gradient of a group's radius is worked out of."""
        return (*(name for name in "vu" if name in self.alive), *self._rules[0].slope)

    @property
    def held(self) -> tuple[str, ...]:
        """What the workspace has of each group, one vector after the other. What rises to a value
        takes the place of the gradient of its radius."""
        own = ("v", "u", "rise") if self.sums else ("v", "u")
        return (*(own[1:] if "v" not in self.weigh_needs else own), *self.sums)

    @property
    def gathered(self) -> tuple[str, ...]:
        """The arrays that the first sweep reads."""
        read = {name for rule in self._rules for name in rule.gathered}
        return self._ordered(read)

    @property
    def shared(self) -> tuple[str, ...]:
        """Those that the second reads."""
        read = {name for rule in self._rules for name in rule.shared}
        return self._ordered(read | ({"y"} if self.nonneg else set()))

    def _ordered(self, names: set[str]) -> tuple[str, ...]:
        return (*(name for name in "yxg" if name in names), *("w" if self.ball.weighted else ""))

    @property
    def arrays(self) -> tuple[str, ...]:
        """All that are read."""
        return self._ordered({*(self.gathered if self.sums else ()), *self.shared})

    @property
    def bases(self) -> tuple[str, ...]:
        """The arrays that the others lie in memory like."""
        return ("y", "w") if self.ball.weighted else ("y",)

    def along(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The bases of these."""
        return tuple(base for base in self.bases if base == "y" or base in names)

    def geometry(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """What a sweep over arrays of these names is told of where they lie."""
        if not self.labelled:
            return "index", "axes"
        return () if all(self.units[name] for name in names) else ("axes",)

    @staticmethod
    def base(name: str) -> str:
        return "w" if name == "w" else "y"

    @property
    def units(self) -> Mapping[str, bool]:
        return {name: self.base(name) in self.contiguous for name in ("y", "x", "g", "out", "w")}

    def lane(self, names: tuple[str, ...], name: str) -> str:
        """Where one of the vectors of `names`, one after the other, has that of a column."""
        number = names.index(name)
        return f"scratch[{('', 'LANES + ', f'{number} * LANES + ')[min(number, 2)]}j]"

    @property
    def cells(self) -> tuple[str, ...]:
        return CELLS

    @property
    def unpacked(self) -> tuple[str, ...]:
        """The cells that `pull` reads."""
        names = ["index_size", "y_size", "memory_size", "seats", "groups", "blocks", "block_size"]
        names += ["items", "extent", "y_bases_at", "y_lane"]
        if self.ball.weighted:
            names += ["w_size", "w_bases_at", "w_lane"]
        if self.several:
            names += ["labels", "scratch_size"]
        if self.columns:
            names += ["tiles", "starts_at"]
        if self.labelled:
            names += ["starts_at", "pieces", "piece", "run", "y_step"]
            names += ["w_step"] if self.ball.weighted else []
            names += ["slots_at", "slots_size"][: len(self.sums)]
        return tuple(name for name in CELLS if name in names)

    @property
    def offsets(self) -> Mapping[str, int]:
        """The cell of where an array's offsets begin; the next one says where they end."""
        return {name: CELLS.index(f"{name}_offsets") for name in self.bases}

    def cell(self, name: str) -> int:
        """Where the geometry has an extent or a step."""
        return CELLS.index(name)

    def spare_size(self, longest: int) -> int:
        """The room that one group needs besides: none."""
        return 0

    def scratch_size(self, pitch: int, labels: int, elements: int) -> int:
        """The room that a thread needs."""
        if self.columns:
            return self.lanes * max(len(self.sums) + len(self.gather_needs), len(self.share_needs))
        return labels * len(self.share_needs) if self.labelled else 0

    @cached_property
    def source(self) -> str:
        return _source(self)


@lru_cache(maxsize=256)
def _source(kernel: GroupPullKernel) -> str:
    return render_group_pull(kernel)


__all__ = ["GATHERS", "SHARES", "GroupPullKernel"]
