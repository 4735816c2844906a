"""The ways of a group kernel: how its groups are reached, and how their levels are searched for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from projgen.cpu.group_numbers import GroupNumbers
from projgen.cpu.walks import LANES


@dataclass(frozen=True)
class GroupWays(GroupNumbers):
    """Of a kernel for one level of groups.

    ``contiguous``: arrays whose runs have a step of 1; ``direct``: a group is one such run of all
    of them, and is worked on where it lies. ``ranked``: of l0, how many values each group has,
    where they are so few that all are compared with each other, in many groups at a time.
    ``spread``: labelled elements are read in the array's order, of ``lanes`` rows
    together. ``stripped``: so many groups of a tile, whose values are found where they lie, are
    projected as rows; or so many of them, ``surveyed``, are copied as they lie and searched for
    their levels together. ``crossed``: labelled elements lie in rows, which are turned into a
    tile's columns and back. ``huge``: groups are so few and long that the threads share each of
    them, in blocks. ``sliced``: of the groups of a tile some rows are worked on at a time.
    ``weight_dtype``: how weights are read.
    """

    in_place: bool
    lanes: int
    contiguous: frozenset[str]
    direct: bool = False
    ranked: int = 0
    spread: bool = False
    stripped: int = 0
    surveyed: int = 0
    crossed: bool = False
    huge: bool = False
    sliced: bool = False
    weight_dtype: str = "float64"

    @property
    def arrays(self) -> tuple[str, ...]:
        return (
            "y",
            *(("x",) if not self.in_place else ()),
            *(("w",) if self.ball.weighted else ()),
        )

    @property
    def units(self) -> Mapping[str, bool]:
        return {name: name in self.contiguous for name in self.arrays}

    @property
    def in_rows(self) -> bool:
        """Whether groups are projected from where they lie to where they go, one by one."""
        return self.direct and self.lanes == 1

    @property
    def checks(self) -> bool:
        """Whether it looks for weights below 0, which it takes for values that are not finite."""
        return self.ball.weighted and not self.huge

    @property
    def over(self) -> bool:
        """Whether groups that are worked on together are projected to where they lie."""
        return self.in_place or self.crossed

    @property
    def abreast(self) -> bool:
        """Whether groups that lie side by side are worked on where they lie."""
        return self.direct and self.lanes > 1

    @property
    def gathers(self) -> bool:
        """Whether groups are copied, projected, and copied back."""
        return self.stripped > 0 or not (self.direct or self.ranked or self.spread)

    @property
    def strip(self) -> int:
        """How many groups are copied together."""
        return self.surveyed or self.stripped or (LANES if self.gathers and self.lanes > 1 else 1)

    @property
    def dealt(self) -> bool:
        """Whether groups to be ranked are copied first, value by value: the compiler finds shuffles
        for a few values that lie one after the other."""
        return self.ranked > 8 or (self.ranked > 0 and not self.units["y"])

    @property
    def joins(self) -> frozenset[str]:
        """How passes over huge groups join what their blocks find, if not by adding it up."""
        ways = {norm: {"highest"} for norm in ("l0", "linf", "lp")}
        ways |= {"l2": {"highest", "longest"}, "simplex": {"highest", "least"}}
        if self.ball.weighted:
            ways["l1"] = ways["l2"]
            ways["l2"] = {"highest", "longest", "least"}
        return frozenset(ways.get(self.ball.norm, ()))

    @property
    def coarse(self) -> bool:
        """Whether some passes over huge groups have a few long blocks, or a single one."""
        return self.drafts or self.ball.norm in ("l0", "lp", "simplex")

    @property
    def always(self) -> bool:
        """Whether groups inside their ball may change as well."""
        return self.ball.nonneg or self.ball.norm == "simplex"

    @property
    def weight_bits(self) -> str:
        """The integer type that holds a weight's bits, as `solve` reads it."""
        return self.weight_dtype.replace("float", "int")

    @property
    def guesses(self) -> bool:
        """Whether searches start from a guess, which the last group gives."""
        norm = self.ball.norm
        found = norm in ("l1", "lp") or (norm == "l0" and not self.ranked)
        return found or (norm == "l2" and self.ball.weighted)

    @property
    def searches(self) -> bool:
        """Whether the levels of a tile are searched for together."""
        return self.guesses and self.abreast and self.stripped == self.surveyed == 0

    @property
    def drafts(self) -> bool:
        """Whether searches begin with sums of the array's type, and may end with them: in float32
        vectors hold twice as many; those of long groups begin with some parts of them."""
        return self.ball.weighted and self.guesses and not self.searches and self.surveyed == 0

    @property
    def close(self) -> str:
        """What ends l2's search: a step of third order, which misses less than 9 times its cube; or
        of groups that a thread has for itself, how wrong t may still be."""
        if self.surveyed or self.huge:
            return "2e-3" if self.dtype == "float32" else "2e-6"
        return "1e-7" if self.dtype == "float32" else "1e-15"

    @property
    def single(self) -> bool:
        """Whether searches begin in float32."""
        return self.dtype == "float32" and (self.drafts or self.surveyed > 0)

    @property
    def precisions(self) -> tuple[int, ...]:
        """The types of a search's sums, in bits."""
        return (32, 64) if self.single else (64,)

    @property
    def rescues(self) -> bool:
        """Whether some of a tile's groups may be worked on alone."""
        return self.abreast and (self.ball.norm == "l2" or self.searches) and not self.surveyed

    @property
    def lane_vectors(self) -> tuple[str, ...]:
        """What is known of each group of a tile."""
        if not self.searches:
            return ("sums",) if self.stripped or self.surveyed else ("sums", "level")
        if self.climbs:
            sketches = ("sketches",) if self.sketches else ()
            return ("sums", "level", "v", "u", "excesses", "squares", "before", *sketches)
        if self.ball.norm == "lp":
            return ("sums", "level", "v", "u", "totals", "slopes", "before", "found", "goals")
        both = ("excesses", "squares") if self.ball.norm == "l1" else ("totals", "slopes", "odds")
        return ("sums", "level", "v", "u", *both, "before", "found", "share", "fall")

    @property
    def single_vectors(self) -> tuple[str, ...]:
        """Those that hold float32."""
        if self.dtype == "float32":
            scales = self.scales or self.ball.norm == "lp"
            return ("level",) if scales else ("sketches",) if self.climbs else ()
        return ()

    @property
    def sketches(self) -> bool:
        """Whether they first go by sums of float32."""
        return self.climbs and self.dtype == "float32"

    @property
    def climbs(self) -> bool:
        """Whether these searches start from below, and not from what the last tile's found."""
        return self.searches and self.ball.norm == "l1" and not self.ball.weighted

    @property
    def scales(self) -> bool:
        """Whether a tile's groups are clipped or scaled by levels in the type of its arithmetic."""
        return self.abreast and self.ball.norm in ("l2", "linf") and not self.ball.weighted

    @property
    def quick(self) -> bool:
        """Whether most limits of a weighted linf are found in float32."""
        weighted = self.ball.norm == "linf" and self.ball.weighted
        return weighted and self.dtype == self.weight_dtype == "float32"
