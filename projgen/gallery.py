"""The canon: a few kernels that show every way of the compiler, kept as files to be read.

``python -m projgen.gallery`` writes them to ``generated/`` and removes what is no longer made; a
test compares the files with what the compiler emits now, byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from projgen.bind import Binding, bind
from projgen.check import parse_tree
from projgen.compiler import Compiled, c_strides, compile_binding, compile_pull
from projgen.cpu.ball import Ball
from projgen.cpu.group_kernel import GroupKernel
from projgen.cpu.group_pull import walk_pull
from projgen.cpu.group_pull_kernel import GroupPullKernel
from projgen.cpu.groups import walk_groups
from projgen.cpu.pull_kernel import PullKernel
from projgen.cuda.compiler import Compiled as CudaCompiled
from projgen.cuda.compiler import CompiledPull
from projgen.cuda.compiler import compile_binding as compile_cuda
from projgen.cuda.compiler import compile_pull as compile_cuda_pull
from projgen.cuda.group_kernel import GroupKernel as CudaGroupKernel
from projgen.cuda.groups import walk_groups as walk_cuda_groups
from projgen.loops import Offsets
from projgen.resources import resource_dir
from projgen.simplify import simplify

SUFFIXES = (".py", ".cu")


@dataclass(frozen=True, slots=True)
class Showing:
    """A kernel, and what it is there to show.

    ``order``: "C"; "F"; or "gaps", C order with every other element left out.
    """

    shows: str
    spec: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    order: str = "C"
    in_place: bool = False
    exact: bool = False

    @property
    def stem(self) -> str:
        """The file's name, but for what the language appends: ``l1_linf-1000x1000-float32``."""
        words = re.sub(r"[^a-z0-9]+", "_", self.spec.replace("-", "m")).strip("_")
        parts = [words, "x".join(map(str, self.shape)), self.dtype]
        parts += [self.order] * (self.order != "C") + ["in_place"] * self.in_place
        parts += ["exact"] * self.exact
        return "-".join(parts)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of y, and of x, in elements."""
        if self.order == "F":
            return c_strides(self.shape[::-1])[::-1]
        step = 2 if self.order == "gaps" else 1
        return tuple(step * stride for stride in c_strides(self.shape))

    @property
    def call(self) -> tuple[Binding, tuple[int, ...], str, tuple[int, ...], tuple[int, ...], bool]:
        """What the compiler is told of it."""
        binding = bind(parse_tree(self.spec), len(self.shape))
        return binding, self.shape, self.dtype, self.strides, self.strides, self.in_place


@dataclass(frozen=True, slots=True)
class Exhibit(Showing):
    """A kernel of the canon; ``positive``: its ball has no negative values."""

    positive: bool = False

    @property
    def name(self) -> str:
        """The file's name: ``l1_linf_axis_0-1000x1000-float32.py``."""
        return f"{self.stem}{'-positive' if self.positive else ''}.py"

    def compiled(self) -> Compiled:
        """What the compiler makes of it, up to the source."""
        return compile_binding(*self.call, exact=self.exact, positive=self.positive)


@dataclass(frozen=True, slots=True)
class CudaExhibit(Showing):
    """A kernel of the canon for a GPU."""

    @property
    def name(self) -> str:
        """The file's name: ``l1_linf_axis_0-1000x1000-float32.cu``."""
        return f"{self.stem}.cu"

    def compiled(self) -> CudaCompiled:
        """What the compiler makes of it, up to the source and its launches."""
        return compile_cuda(*self.call)


@dataclass(frozen=True, slots=True)
class PullExhibit(Showing):
    """A kernel of the canon that takes gradients back; ``top`` levels of a tree stand above it."""

    top: int = 0

    @property
    def name(self) -> str:
        """The file's name: ``l1_linf_axis_0-1000x1000-float32-pull.py``."""
        return f"{self.stem}-pull{'-part' if self.top else ''}.py"

    def compiled(self) -> PullKernel:
        """The kernel, which has its source."""
        binding, shape, dtype, strides, *_ = self.call
        return compile_pull(self.spec, simplify(binding, shape, strides), dtype, self.top)


@dataclass(frozen=True, slots=True)
class CudaPullExhibit(Showing):
    """A kernel of the canon that takes gradients back on a GPU."""

    @property
    def name(self) -> str:
        """The file's name: ``l1_linf-1000x1000-float32-pull.cu``."""
        return f"{self.stem}-pull.cu"

    def compiled(self) -> CompiledPull:
        """What the compiler makes of it, up to the source and its launches."""
        return compile_cuda_pull(*self.call[:4])


@dataclass(frozen=True, slots=True)
class ShowingGroups:
    """A kernel of one level of groups, along ``axes`` of C-ordered arrays.

    ``labels``: for groups of given sizes, how many; the kernel does not depend on which they are.
    """

    shows: str
    ball: Ball
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str = "float32"
    labels: int = 0

    @property
    def stem(self) -> str:
        """The file's name without its end: ``group_l1_w_axis_0-1000x1000-float32``."""
        axes = "_".join(["axis", *map(str, self.axes)])
        title = re.sub(r"[^a-z0-9]+", "_", f"group_{self.ball.title}_{axes}".lower())
        return f"{title}-{'x'.join(map(str, self.shape))}-{self.dtype}"

    @property
    def ways(self) -> tuple[Ball, str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """What planning a walk begins with."""
        return self.ball, self.dtype, self.shape, c_strides(self.shape), self.axes

    @property
    def rest(self) -> tuple[tuple[int, ...] | None, Offsets | None]:
        """The strides of weights, and labels."""
        labels = np.arange(self.shape[self.axes[0]]) % self.labels if self.labels else None
        return (c_strides(self.shape) if self.ball.weighted else None), labels


@dataclass(frozen=True, slots=True)
class GroupExhibit(ShowingGroups):
    """On the CPU. ``back``: of one that takes gradients back, how many levels stand above."""

    back: int | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        back = "" if self.back is None else "-pull-part" if self.back else "-pull"
        return f"{self.stem}{back}.py"

    def compiled(self) -> GroupKernel | GroupPullKernel:
        """The kernel that walks such arrays."""
        if self.back is not None:
            return walk_pull(*self.ways, *self.rest, "float64", self.back).kernel
        return walk_groups(*self.ways, c_strides(self.shape), *self.rest).kernel


@dataclass(frozen=True, slots=True)
class CudaGroupExhibit(ShowingGroups):
    """On a GPU."""

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.stem}.cu"

    def compiled(self) -> CudaGroupKernel:
        """The kernel that walks such arrays."""
        return walk_cuda_groups(*self.ways, c_strides(self.shape), *self.rest).kernel


CANON = (
    Exhibit("rows", "l1(linf)", (1000, 1000)),
    Exhibit("rows, in place", "l1(linf)", (1000, 1000), in_place=True),
    Exhibit("columns", "l1(linf(axis=0))", (1000, 1000)),
    Exhibit("columns, from the memory's order", "l1(l2)", (1000, 1000), order="F"),
    Exhibit("rows from main memory, and to it", "l1(linf)", (4000, 4000)),
    Exhibit("columns from main memory, 64 bits", "l1(l2(axis=0))", (4000, 4000), "float64"),
    Exhibit("rows with gaps", "linf(l2)", (1000, 1000), order="gaps"),
    Exhibit("short rows, packed", "l1(linf)", (100_000, 9)),
    Exhibit("short rows, packed, thresholds by sorting", "l1(l1)", (100_000, 9), in_place=True),
    Exhibit("groups that alternate, in bundles of two", "l1(l1(axis=1))", (30_000, 3, 2)),
    Exhibit("a batch of rows, thresholds one by one", "l1(axis=1)", (1000, 1000)),
    Exhibit("short rows, thresholds in tiles that have them as columns", "l1(l1)", (5000, 200)),
    Exhibit("columns, thresholds by strips", "l2(l1(axis=0))", (300, 1000), in_place=True),
    Exhibit("columns from afar, thresholds by tiles", "l2(l1(axis=0))", (1000, 4000)),
    Exhibit("long columns, made rows for their thresholds", "l2(l1(axis=0))", (5000, 800)),
    Exhibit("one group, thresholds by sweeps", "l1", (4000, 4000), "float64"),
    Exhibit("columns, thresholds by sweeps", "linf(l1(axis=0))", (100_000, 40)),
    Exhibit("few columns at a time, each copied", "l1(l1(axis=1))", (512, 512, 9)),
    Exhibit("a convolution's filters", "l1(linf(axis=(1, 2, 3)))", (64, 32, 3, 3)),
    Exhibit("its input channels", "l1(linf(axis=(0, 2, 3)))", (64, 32, 3, 3)),
    Exhibit("interleaved axes and a batch", "l1(linf(axis=(0, 2)), axis=3)", (50, 20, 30, 40)),
    Exhibit("a deep tree", "l1(l2(linf(l1)))", (16, 24, 32, 100)),
    Exhibit("half precision: largest magnitudes among bits", "l1(linf)", (1000, 1000), "float16"),
    Exhibit("half precision, packed and sorted", "l1(l1)", (100_000, 9), "bfloat16", in_place=True),
    Exhibit("the nearest point, of rows", "l1(linf)", (1000, 1000), exact=True),
    Exhibit("of columns and a batch", "l1(linf(axis=1), axis=2)", (8, 1000, 300), exact=True),
    Exhibit("without negative values, of which bits tell", "l1(linf)", (1000, 1000), positive=True),
    Exhibit("without negative values, columns in place", "l1(l2(axis=0))", (1000, 1000),
            in_place=True, positive=True),
)  # fmt: skip

GROUP_CANON = (
    GroupExhibit("2:4 sparsity, many groups at a time", Ball("l0"), (4096, 1024, 4), (2,)),
    GroupExhibit("weights, groups side by side", Ball("l1", weighted=True), (1000, 1000), (0,)),
    GroupExhibit("weights, group by group", Ball("l2", weighted=True), (1000, 1000), (1,)),
    GroupExhibit("halves by columns", Ball("linf", weighted=True), (1000, 1000), (0,), "float16"),
    GroupExhibit("halves, copied group by group", Ball("lp", 3.0), (1000, 1000), (1,), "bfloat16"),
    GroupExhibit("a search in logarithms", Ball("lp", 1.5), (1000, 1000), (1,), "float64"),
    GroupExhibit("a search for roots without a formula", Ball("lp", 4.0), (1000, 1000), (1,)),
    GroupExhibit("groups of lp side by side, by roots", Ball("lp", 1.5, ragged=True), (1000, 1000),
                 (0,), labels=50),
    GroupExhibit("one group that the threads share", Ball("l0"), (10_000_000,), (0,)),
    GroupExhibit("groups of given sizes", Ball("l2", ragged=True), (100, 1000), (1,), labels=30),
    GroupExhibit("gradients, groups side by side", Ball("l2", weighted=True), (1000, 1000), (0,),
                 back=1),
    GroupExhibit("gradients of rows", Ball("simplex"), (1000, 1000), (1,), "float64", back=0),
    GroupExhibit("gradients of groups of given sizes", Ball("linf", ragged=True), (100, 1000), (1,),
                 labels=30, back=1),
)  # fmt: skip

CUDA_CANON = (
    CudaExhibit("rows: a warp takes one", "l1(linf)", (1000, 1000)),
    CudaExhibit("rows, in place: a block takes one", "l1(l2)", (1000, 4000), in_place=True),
    CudaExhibit("columns, cut into pieces", "l1(linf(axis=0))", (1000, 1000)),
    CudaExhibit("half precision, narrow columns side by side", "l1(l2(axis=0))", (99_000, 9),
                "bfloat16"),
    CudaExhibit("short rows, packed; many values at the root", "l1(linf)", (100_000, 9)),
    CudaExhibit("columns with gaps, thresholds by tiles", "l1(l1(axis=0))", (300, 1000),
                order="gaps"),
    CudaExhibit("one group, its threshold by sweeps", "l1", (4000, 4000), "float64"),
    CudaExhibit("a batch of rows, thresholds in shared memory", "l1(axis=1)", (1000, 1000)),
    CudaExhibit("a convolution's filters", "l1(linf(axis=(1, 2, 3)))", (64, 32, 3, 3), "float16"),
    CudaExhibit("a deep tree over interleaved axes and a batch",
                "l1(l2(linf(axis=(0, 2)), axis=4), axis=3)", (9, 8, 7, 6, 5)),
)  # fmt: skip

CUDA_GROUP_CANON = (
    CudaGroupExhibit("rows with weights: a warp takes one", Ball("l1", weighted=True), (1000, 1000),
                     (1,)),
    CudaGroupExhibit("groups of several runs: a block takes one", Ball("linf", nonneg=True),
                     (30, 400, 50, 8), (1, 3), "float16"),
    CudaGroupExhibit("a search in logarithms", Ball("lp", 1.5), (1000, 1000), (0,), "float64"),
    CudaGroupExhibit("2:4 sparsity", Ball("l0"), (4096, 1024, 4), (2,), "bfloat16"),
    CudaGroupExhibit("values with their signs", Ball("simplex"), (1000, 4000), (1,)),
    CudaGroupExhibit("groups of given sizes", Ball("l2", ragged=True), (100, 1000), (1,),
                     labels=30),
)  # fmt: skip

CUDA_PULL_CANON = (
    CudaPullExhibit("gradients of rows: a warp takes one", "l1(linf)", (1000, 1000)),
    CudaPullExhibit("gradients of columns, cut into pieces, half precision", "l2(l1(axis=0))",
                    (1000, 1024), "float16"),
    CudaPullExhibit("gradients of short groups, in a deep tree with a level of its own launches",
                    "l1(l2(linf))", (3000, 40, 9)),
)  # fmt: skip

PULL_CANON = (
    PullExhibit("gradients of rows", "l1(linf)", (1000, 1000)),
    PullExhibit("gradients of columns, 64 bits", "l1(l1(axis=0))", (4000, 4000), "float64"),
    PullExhibit("gradients of short groups, in a deep tree", "l1(l2(linf))", (1000, 30, 9)),
    PullExhibit("gradients of an array of a tree", "linf(axis=1)", (1000, 1000), top=1),
)


def gallery() -> dict[str, str]:
    """The sources by file name."""
    cuda = *CUDA_CANON, *CUDA_GROUP_CANON, *CUDA_PULL_CANON
    exhibits = (*CANON, *GROUP_CANON, *PULL_CANON, *cuda)
    return {exhibit.name: exhibit.compiled().source for exhibit in exhibits}


def write(directory: Path) -> list[str]:
    """Make `directory` hold the gallery, and no other source; what changed, by name."""
    sources = gallery()
    old = {
        path.name: path.read_text("utf-8")
        for path in directory.glob("*")
        if path.suffix in SUFFIXES
    }
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
