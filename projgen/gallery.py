"""The canon: a few kernels that show every way of the compiler, kept as files to be read.

``python -m projgen.gallery`` writes them to ``generated/`` and removes what is no longer made; a
test compares the files with what the compiler emits now, byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from projgen.bind import bind
from projgen.check import parse_tree
from projgen.compiler import Compiled, c_strides, compile_binding
from projgen.resources import resource_dir


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A kernel of the canon, and what it is there to show.

    ``order``: "C"; "F"; or "gaps", C order with every other element left out.
    """

    shows: str
    spec: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    order: str = "C"
    in_place: bool = False

    @property
    def name(self) -> str:
        """The file's name: ``l1_linf_axis_0-1000x1000-float32.py``."""
        words = re.sub(r"[^a-z0-9]+", "_", self.spec.replace("-", "m")).strip("_")
        parts = [words, "x".join(map(str, self.shape)), self.dtype]
        parts += [self.order] * (self.order != "C") + ["in_place"] * self.in_place
        return "-".join(parts) + ".py"

    @property
    def strides(self) -> tuple[int, ...]:
        """Of y, and of x, in elements."""
        if self.order == "F":
            return c_strides(self.shape[::-1])[::-1]
        step = 2 if self.order == "gaps" else 1
        return tuple(step * stride for stride in c_strides(self.shape))

    def compiled(self) -> Compiled:
        """What the compiler makes of it, up to the source."""
        binding = bind(parse_tree(self.spec), len(self.shape))
        return compile_binding(
            binding, self.shape, self.dtype, self.strides, self.strides, self.in_place
        )


CANON = (
    Exhibit("rows", "l1(linf)", (1000, 1000)),
    Exhibit("rows, in place", "l1(linf)", (1000, 1000), in_place=True),
    Exhibit("columns", "l1(linf(axis=0))", (1000, 1000)),
    Exhibit("columns, from the memory's order", "l1(l2)", (1000, 1000), order="F"),
    Exhibit("columns from main memory, 64 bits", "l1(l2(axis=0))", (4000, 4000), "float64"),
    Exhibit("rows with gaps", "linf(l2)", (1000, 1000), order="gaps"),
    Exhibit("short rows, packed", "l1(linf)", (100_000, 9)),
    Exhibit("short rows, packed, thresholds by sorting", "l1(l1)", (100_000, 9), in_place=True),
    Exhibit("a batch of rows, thresholds one by one", "l1(axis=1)", (1000, 1000)),
    Exhibit("columns, thresholds by strips", "l2(l1(axis=0))", (1000, 1000), in_place=True),
    Exhibit("columns that share cache lines, thresholds by tiles", "l2(l1(axis=0))", (1024, 1024)),
    Exhibit("one group, thresholds by sweeps", "l1", (4000, 4000), "float64"),
    Exhibit("columns, thresholds by sweeps", "linf(l1(axis=0))", (100_000, 40)),
    Exhibit("a convolution's filters", "l1(linf(axis=(1, 2, 3)))", (64, 32, 3, 3)),
    Exhibit("its input channels", "l1(linf(axis=(0, 2, 3)))", (64, 32, 3, 3)),
    Exhibit("interleaved axes and a batch", "l1(linf(axis=(0, 2)), axis=3)", (50, 20, 30, 40)),
    Exhibit("a deep tree", "l1(l2(linf(l1)))", (16, 24, 32, 100)),
)


def gallery() -> dict[str, str]:
    """The sources by file name."""
    return {exhibit.name: exhibit.compiled().source for exhibit in CANON}


def write(directory: Path) -> list[str]:
    """Make `directory` hold the gallery, and no other source; what changed, by name."""
    sources = gallery()
    old = {path.name: path.read_text("utf-8") for path in directory.glob("*.py")}
    changed = sorted(name for name in {*sources, *old} if sources.get(name) != old.get(name))
    for name in changed:
        if name in sources:
            (directory / name).write_text(sources[name], "utf-8", newline="\n")
        else:
            (directory / name).unlink()
    return changed


def main() -> None:
    """Write the gallery of this checkout."""
    directory = resource_dir("generated")
    if not directory.is_dir():
        raise SystemExit(f"{directory} is no directory: run this in a checkout of projgen")
    print("\n".join(write(directory)) or "nothing changed")


if __name__ == "__main__":
    main()
