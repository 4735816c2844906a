"""The kernel of one level of groups, of any norm: what its source depends on.

A group's elements are runs along its innermost axis, one for each of a list of offsets; with labels
each element has an offset of its own. Columns, whose groups are neighbours in memory, are walked in
tiles of adjacent groups, so that whole cache lines are read; where each of them is searched for a
threshold, strips of a tile are turned into rows and back. Everything else arrives at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from projgen.cpu import walks  # a module: tests replace what it says is huge
from projgen.cpu.group_ways import GroupWays
from projgen.cpu.lower import VERSION
from projgen.cpu.walks import CELLS
from projgen.dtypes import ITEMSIZE
from projgen.render import render_group


@dataclass(frozen=True)
class GroupKernel(GroupWays):
    """A kernel; equal ones have equal sources."""

    shares_cell: int = field(default=32, init=False)
    some: int = field(default=walks.SOME, init=False)
    version: int = field(default=VERSION, init=False)

    @property
    def title(self) -> str:
        return self.ball.title

    @property
    def converts(self) -> str:
        """The type of halves that it widens and narrows; to be ranked, their bits will do."""
        return self.stored if self.half and not self.ranked else ""

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            *self._lie,
            *(("arithmetic is in float32, and rounded when written",) * bool(self.converts)),
        )

    @property
    def _lie(self) -> tuple[str, ...]:
        """How the groups lie in memory, and what comes of that."""
        if self.ranked:
            beside = "one after the other" if self.units["y"] else "side by side"
            return (
                f"groups of {self.ranked} lie {beside} in memory: "
                f"{self.lanes} are worked on together",
            )
        if self.crossed:
            return (
                f"{self.lanes} rows of labelled elements are turned into columns, and their groups "
                "worked on together",
            )
        if self.stripped:
            return (
                f"groups lie side by side in memory: {self.lanes} are measured together, "
                f"where they lie, and {self.strip} turned into rows",
            )
        if self.surveyed:
            return (
                f"groups lie side by side in memory: {self.lanes} are measured together, "
                f"where they lie, {self.strip} copied, and 16 of these searched together",
            )
        if self.abreast:
            return (
                f"groups lie side by side in memory: {self.lanes} are worked on together, "
                "where they lie" + ", some of their rows at a time" * self.sliced,
            )
        if self.spread and self.lanes > 1:
            return (
                f"labelled elements of {self.lanes} rows are read together, and added up by label",
            )
        if self.lanes > 1:
            return (
                f"groups lie side by side in memory: tiles of {self.lanes} are gathered together",
            )
        if self.spread:
            return ("labelled elements are read as they lie, and added up by label",)
        if self.ball.ragged:
            return ("the elements of a group lie anywhere along an axis: each has an offset",)
        if self.direct:
            lies = "a group is contiguous in memory, and is worked on where it lies"
            return (lies + ", by all threads together" * self.huge,)
        if "y" in self.contiguous:
            return ("a group's runs are contiguous in memory",)
        return ("a group's runs have a step between elements",)

    @property
    def cells(self) -> tuple[str, ...]:
        return CELLS

    @property
    def unpacked(self) -> tuple[str, ...]:
        """The cells that `project` reads."""
        names = ["index_size", "y_size", "x_size", "w_size", "memory_size", "seats"]
        names += ["scratch_size", "spare_size", "pitch", "groups", "blocks", "block_size", "items"]
        names += ["labels", "tiles", "extent", "starts_at"]
        names += ["y_bases_at", "x_bases_at", "w_bases_at", "y_lane", "x_lane", "w_lane"]
        without = {
            name for name in names if name[:2] in ("x_", "w_") and name[0] not in self.arrays
        }
        if self.lanes == 1:
            without.add("tiles")
        if self.ranked:
            without |= {"labels", "starts_at", "pitch"}
        if self.spread:
            names += ["pieces", "piece", "slots_at", "slots_size"] if self.lanes == 1 else []
            without |= {"pitch", "spare_size"}
        if not self.spare:
            without.add("spare_size")
        if self.sliced:
            names += ["pieces", "piece", "slots_at", "slots_size"]
            without.add("labels")
        if self.huge:
            names += ["pieces", "piece", "slots_at", "slots_size"]
            without |= {"blocks", "block_size", "items", "labels", "starts_at"}
        return tuple(name for name in names if name not in without)

    @property
    def offsets(self) -> Mapping[str, int]:
        """The cell of where an array's offsets begin; the next one says where they end."""
        return {name: CELLS.index(f"{name}_offsets") for name in self.arrays}

    @property
    def steps(self) -> Mapping[str, int]:
        return {name: CELLS.index(f"{name}_step") for name in self.arrays}

    @property
    def w_lane(self) -> int:
        return CELLS.index("w_lane")

    @property
    def run(self) -> int:
        return CELLS.index("run")

    def element(self, x: str) -> str:
        """An element of a group to work with, which may be worked on where it lies."""
        return self.widen(x) if self.in_rows else x

    def written(self, value: str) -> str:
        """The inverse."""
        return self.narrow(value) if self.in_rows else value

    def load(self, x: str) -> str:
        """An element as its ball counts it, in float64."""
        x = self.element(x)
        if self.ball.norm == "simplex":
            return f"np.float64({x})"
        return f"positive({x})" if self.ball.nonneg else f"abs(np.float64({x}))"

    def sketched(self, x: str) -> str:
        """The same in float32."""
        x = self.element(x)
        return f"max({x}, np.float32(0))" if self.ball.nonneg else f"abs({x})"

    def bits_of_weight(self, w: str) -> str:
        """A weight's bits as a number: those of all that are below 0 are higher than others'."""
        return f"view(np.{self.weight_dtype}({w}), np.u{self.weight_bits})"

    def store(self, value: str, x: str) -> str:
        """What is written for a projected `value` of element `x`."""
        signed = value if self.always else f"math.copysign({value}, {self.element(x)})"
        return self.written(signed)

    @property
    def target(self) -> str:
        """Where `solve` writes to."""
        return "target" if self.in_rows and not self.in_place else "row"

    @property
    def tile_arrays(self) -> tuple[str, ...]:
        """The arrays that have their groups."""
        return tuple(name for name in self.arrays if name != "x" or not self.crossed)

    def room(self, dtype: str) -> str:
        """The cells of a thread's memory that such groups take."""
        cells = self.strip * ITEMSIZE[dtype] // 8
        return f"{cells} * pitch" if cells > 1 else "pitch" if cells else "pitch // 2"

    @property
    def turned(self) -> Mapping[str, str]:
        """The types of arrays of which whole strips can be turned into rows, by shuffles."""
        if self.crossed:
            return {"y": self.dtype}
        if not self.gathers or self.lanes == 1 or self.ball.ragged:
            return {}
        dtypes = {"w": self.weight_dtype}
        if not self.half:
            dtypes |= {"y": self.dtype, "x": self.dtype}
        return {name: dtypes[name] for name in self.arrays if self.units[name] and name in dtypes}

    @property
    def turns(self) -> Mapping[str, int]:
        """By type, how many values the vectors have that are turned."""
        return dict.fromkeys(sorted({*self.turned.values()}), 8)

    @property
    def solved(self) -> str:
        """The first arguments of `solve`."""
        if self.huge:
            return self.arguments("group", "group_x", "group_w")
        return self.arguments("row", "target", "w")

    def arguments(self, row: str, target: str, weights: str) -> str:
        """The same, by other names."""
        names = [row] + [target] * (self.target == "target") + [weights] * self.ball.weighted
        return ", ".join(names + ["spare"] * self.spare + ["crew"] * self.huge)

    def swept(self, arrays: str) -> list[str]:
        """Of some arrays of a group those that there are."""
        without = {"target"} if self.target == "row" else set()
        if not self.ball.weighted:
            without.add("w")
        return [name for name in arrays.split() if name not in without]

    @property
    def tile(self) -> str:
        """What tells the functions of a tile where it lies."""
        weighted = self.ball.weighted
        names = ["y", *["w"] * weighted, "begin", "end", "base_y", *["base_w"] * weighted]
        return ", ".join([*names, "width", "index", "axes", *["run"] * self.sliced])

    def limit(self, x: str) -> str:
        """A limit of an unweighted linf, in the array's type."""
        down = self.dtype == "float32" and not self.ball.weighted
        return f"np.float64(down({x}))" if down else x

    def level(self, x: str) -> str:
        """The same of a level that a tile's groups are clipped or scaled by."""
        return f"down({x})" if self.dtype == "float32" and self.scales else x

    @property
    def spare(self) -> bool:
        return self.spare_size(1) > 0

    def spare_size(self, longest: int) -> int:
        """The room that the projection of one group of `longest` elements needs."""
        if self.ball.norm == "l0" and self.huge:  # some values, and those that are searched among
            return 4096 - (-longest // walks.PART) - (-longest * ITEMSIZE[self.dtype] // 8)
        if self.ball.norm == "l0":
            return 0 if self.ranked else 4096  # some values
        if self.ball.norm == "lp":
            return 5 * longest
        return 2 * longest if self.ball.norm == "l2" and self.ball.weighted else 0

    def scratch_size(self, pitch: int, longest: int, elements: int) -> int:
        """The room that a thread needs for groups of up to `longest` of that many elements, or so
        many labels."""
        if self.huge:
            return 16  # where a thread counts passes
        if self.ranked:
            return self.lanes * (1 + self.ranked)
        if self.spread:
            levels = longest  # one for each label
            return levels + (self.lanes * longest if self.lanes > 1 else 0)
        room = len(self.lane_vectors) * self.lanes if self.abreast else 0
        if self.surveyed:
            room += 4 * self.strip + 72 + 2 * pitch
        if self.gathers or self.rescues or self.surveyed:
            dtypes = [self.dtype] + [self.weight_dtype] * self.ball.weighted
            room += sum(self.strip * pitch * ITEMSIZE[dtype] // 8 for dtype in dtypes)
        if self.crossed:
            room += self.lanes * elements * ITEMSIZE[self.dtype] // 8
        return room + self.spare_size(longest)

    @cached_property
    def source(self) -> str:
        return _source(self)


@lru_cache(maxsize=256)
def _source(kernel: GroupKernel) -> str:
    return render_group(kernel)
