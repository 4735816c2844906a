"""The compiler, from a checked tree to a function.

Stages, each a module; the output of one is the input of the next:

0. `projgen.parse`, `projgen.check`   spec text -> NormTree
1. `projgen.bind`                     NormTree, rank -> Binding: the axes of each level
2. `projgen.simplify`                 Binding, shape, strides -> Layout: loops in memory order
3. `projgen.plan`                     Layout, dtype -> Plan: sweeps, walks, blocks
4. `projgen.cpu.lower`                Plan -> Kernel: the names and nests of the source
5. `projgen.render`                   Kernel -> source text
6. `projgen.cpu.load`                 source text -> module, compiled and cached
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from projgen.bind import Binding
from projgen.cpu.kernel import Kernel
from projgen.cpu.lower import lower
from projgen.plan import Plan, plan
from projgen.render import render
from projgen.simplify import simplify

logger = logging.getLogger("projgen")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of one binding for arrays of one shape, dtype and layout."""

    plan: Plan
    kernel: Kernel
    source: str


def compile_binding(
    binding: Binding,
    shape: Sequence[int],
    dtype: str,
    strides: Sequence[int] | None = None,
    out_strides: Sequence[int] | None = None,
    in_place: bool = False,
) -> Compiled:
    """Stages 2 to 5. `strides` are in elements, by default those of C order."""
    strides = c_strides(shape) if strides is None else strides
    began = perf_counter()
    layout = simplify(binding, shape, strides, out_strides)
    planned = plan(binding.tree.spec, layout, dtype, in_place)
    kernel = lower(planned)
    source = render(kernel)
    logger.debug("%s: stages 2 to 5 took %.1f ms", planned.spec, 1e3 * (perf_counter() - began))
    return Compiled(planned, kernel, source)


def load_kernel(compiled: Compiled) -> Any:
    """Stage 6: the module of a kernel, from the cache or compiled."""
    from projgen.cpu.load import load

    began = perf_counter()
    module = load(compiled.source)
    logger.debug("%s: loaded in %.1f ms", compiled.plan.spec, 1e3 * (perf_counter() - began))
    return module


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of C order, in elements."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= max(extent, 1)
    return tuple(strides)


__all__ = ["Compiled", "c_strides", "compile_binding", "load_kernel"]
