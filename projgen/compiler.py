"""The compiler, from a checked tree to a function.

Stages, each a module; the output of one is the input of the next:

0. `projgen.parse`, `projgen.check`   spec text -> NormTree
1. `projgen.bind`                     NormTree, rank -> Binding: the axes of each level
2. `projgen.simplify`                 Binding, shape, strides -> Layout: loops in memory order
3. `projgen.plan`                     Layout, dtype -> Plan: sweeps, walks, blocks
4. `projgen.cpu.lower`                Plan -> Kernel: the names and nests of the source
5. `projgen.render`                   Kernel -> source text
6. `projgen.cpu.load`                 source text -> module, compiled and cached

Gradients go back through a projection by a kernel of their own, which shares stages 0 to 2 with it:
`projgen.cpu.pull_kernel` lowers it.

For a GPU, `projgen.cuda` has the stages from 3 on: see `projgen.cuda.compiler`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from projgen.arrays import check_dtype
from projgen.bind import Binding, bind
from projgen.cpu.kernel import Kernel
from projgen.cpu.lower import lower
from projgen.cpu.pull_kernel import PullKernel, lower_pull
from projgen.dtypes import arithmetic
from projgen.plan import Plan, plan
from projgen.render import render
from projgen.simplify import Layout, simplify
from projgen.tree import NormTree

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from projgen.cuda.compiler import Compiled as CudaCompiled

logger = logging.getLogger("projgen")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of one binding for arrays of one shape, dtype and layout."""

    plan: Plan
    kernel: Kernel
    source: str

    @property
    def title(self) -> str:
        return self.plan.spec


def compile_binding(
    binding: Binding,
    shape: Sequence[int],
    dtype: str,
    strides: Sequence[int] | None = None,
    out_strides: Sequence[int] | None = None,
    in_place: bool = False,
    exact: bool = False,
    positive: bool = False,
) -> Compiled:
    """Stages 2 to 5. `strides` are in elements, by default those of C order. `positive`: negative
    values count as 0, and become 0."""
    strides = c_strides(shape) if strides is None else strides
    began = perf_counter()
    layout = simplify(binding, shape, strides, out_strides)
    planned = plan(binding.tree.spec, layout, dtype, in_place, exact)
    kernel = lower(planned, positive)
    source = render(kernel)
    logger.debug("%s: stages 2 to 5 took %.1f ms", planned.spec, 1e3 * (perf_counter() - began))
    return Compiled(planned, kernel, source)


def compile_pull(
    spec: str, layout: Layout, dtype: str, top: int = 0, positive: bool = False
) -> PullKernel:
    """Stages 3 to 5 of the way back through projections of arrays with this layout.

    ``top``: how many levels of a tree stand above these, done by other kernels. ``positive``: as in
    `compile_binding`.
    """
    began = perf_counter()
    kernel = lower_pull(spec, layout, arithmetic(dtype), top, positive)
    made = 1e3 * (perf_counter() - began)
    logger.debug("%s: the stages of its gradients took %.1f ms", spec, made)
    return kernel


def compile_tree(
    tree: NormTree,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    cuda: bool = False,
    exact: bool = False,
) -> Compiled | CudaCompiled:
    """Stages 1 to 5, for arrays of `shape` in C order; a TypeError for a dtype without kernels."""
    binding = bind(tree, len(shape), shape)
    if not cuda:
        known = isinstance(dtype, str) and dtype == "bfloat16"  # NumPy may not know it
        name = "bfloat16" if known else check_dtype(np.empty(0, dtype))
        return compile_binding(binding, shape, name, exact=exact)
    from projgen.cuda.arrays import checked_dtype
    from projgen.cuda.compiler import compile_binding as compile_cuda

    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", "")
    return compile_cuda(binding, shape, checked_dtype(name or np.dtype(dtype).name))


class Loadable(Protocol):
    """What `load_kernel` makes a module of."""

    @property
    def title(self) -> str: ...
    @property
    def source(self) -> str: ...


def load_kernel(compiled: Loadable) -> Any:
    """Stage 6: the module of a kernel, from the cache or compiled."""
    from projgen.cpu.load import load

    began = perf_counter()
    module = load(compiled.source)
    logger.debug("%s: loaded in %.1f ms", compiled.title, 1e3 * (perf_counter() - began))
    return module


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of C order, in elements."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= max(extent, 1)
    return tuple(strides)


__all__ = [
    "Compiled",
    "c_strides",
    "compile_binding",
    "compile_pull",
    "compile_tree",
    "load_kernel",
]
