"""A level's search for thresholds in its kernel: which functions it takes, and their sizes."""

from dataclasses import dataclass

from projgen.cpu.sorting import exchanges
from projgen.dtypes import ITEMSIZE
from projgen.stage import Stage


@dataclass(frozen=True)
class SearchCode:
    """What the way of a level's search, in `projgen.searches`, comes to for its functions.

    ``dtype`` is the type of the level's arithmetic, ``stored`` that of its array, whose halves are
    widened where they are read and narrowed where they are written.
    """

    stage: Stage
    dtype: str
    stored: str

    @property
    def walk(self) -> str:
        return str(self.stage.walk)

    @property
    def threshold(self) -> str:
        return str(self.stage.threshold or "")

    @property
    def half(self) -> bool:
        """Whether its array holds halves: a kernel sees their bits, as int16."""
        return ITEMSIZE[self.stored] == 2

    @property
    def limited(self) -> bool:
        """Whether each group's limit is worked out ahead of the last sweep, into a vector."""
        if self.turned:
            return False
        return self.threshold in ("sweep", "joint", "tile", "upend") or self.walk == "columns"

    @property
    def joint(self) -> bool:
        """Whether all groups' limits are searched for together, as nearest points ask for."""
        return self.threshold == "joint"

    @property
    def by_rows(self) -> bool:
        """Whether thresholds, or guesses of them, are searched for in one row after the other."""
        return self.threshold in ("row", "turn") or self.sampled or self.transposed

    @property
    def gathered(self) -> bool:
        """Whether the values of each group are brought together for the search."""
        return self.threshold == "row" and self.walk == "columns"

    @property
    def turned(self) -> bool:
        """Whether a few columns, which are a dense run, are turned into rows for the search."""
        return self.threshold == "turn"

    @property
    def squared(self) -> bool:
        """Whether squares of shuffles do that: of four columns, one by one is as quick."""
        return self.turned and not self.half and self.stage.bundle > 4

    @property
    def copied(self) -> bool:
        """Whether halves are widened to scratch memory for a search, which reads them often."""
        ways = ("sort", "packed"), ("row", "rows")
        return self.half and (self.threshold, self.walk) in ways

    @property
    def abreast(self) -> bool:
        """Whether thresholds are searched for 16 groups at a time, between the sweeps."""
        return self.threshold in ("strip", "tile", "upend")

    @property
    def upended(self) -> bool:
        """Whether 16 rows at a time are made columns of a tile for the search."""
        return self.threshold == "upend"

    @property
    def transposed(self) -> bool:
        """Whether tiles of columns are made rows for the search, between the sweeps."""
        return self.threshold == "transpose"

    @property
    def hinted(self) -> bool:
        """Whether a search between the sweeps starts from what the first groups have shown."""
        return self.abreast or self.transposed

    @property
    def hinting(self) -> int:
        """How many turns of the loop that is cut say where the others should start."""
        if self.walk == "packed":
            return 16 * self.stage.bundle
        groups = -2 if self.upended else -1
        return 16 if self.stage.tiles.loop == len(self.stage.axes) + groups else 1

    @property
    def sorted_aside(self) -> bool:
        """Whether thresholds are found by sorting between the sweeps."""
        return (self.threshold, self.walk) == ("sort", "columns")

    @property
    def sampled(self) -> bool:
        """Whether a long group's threshold is guessed from a sample."""
        stage = self.stage
        alone = sum(axis.reduced for axis in stage.axes) == 1
        rows = self.walk == "rows" and stage.unit
        return self.threshold == "sweep" and alone and (rows or stage.lanes > 1)

    @property
    def sum_dtype(self) -> str:
        """The type of short sums; a loop over strided values does not vectorise, and adds one
        value after the other."""
        return self.dtype if self.stage.unit else "float64"

    @property
    def exchanges(self) -> tuple[tuple[int, int], ...]:
        """The sorting network for the values of a group."""
        return exchanges(self.stage.group_size)

    @property
    def sort(self) -> str:
        """The name of what finds thresholds by sorting."""
        bundle = f"_{self.stage.bundle}" if self.stage.bundle > 1 else ""
        return f"sort_{self.stage.group_size}{bundle}"

    @property
    def sorted_lanes(self) -> int:
        """How many groups are sorted at a time: a vector that most processors have, or two where
        a group's values leave registers for them."""
        return (64 if self.stage.group_size < 16 else 32) // ITEMSIZE[self.dtype]

    @property
    def pattern(self) -> int:
        """How many values several rows of columns that are turned have: whole vectors."""
        columns = self.stage.bundle
        return (16 if columns >= 8 else 32) * columns
