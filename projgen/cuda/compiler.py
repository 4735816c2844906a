"""The stages for a GPU: shared but for the plan's decisions, the lowering and the text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from projgen.bind import Binding
from projgen.compiler import c_strides
from projgen.cuda.kernel import Kernel
from projgen.cuda.launches import Schedule, schedule
from projgen.cuda.lower import lower
from projgen.cuda.plan import plan
from projgen.cuda.pull_kernel import PullKernel, lower_pull
from projgen.cuda.pull_launches import PullSchedule, pull_schedule
from projgen.plan import Plan
from projgen.render import render_cuda, render_cuda_pull
from projgen.simplify import simplify

logger = logging.getLogger("projgen")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of one binding for arrays of one shape, dtype and layout."""

    plan: Plan
    kernel: Kernel
    source: str
    schedule: Schedule

    @property
    def title(self) -> str:
        """What the kernel projects, for messages."""
        return self.plan.spec


@dataclass(frozen=True, slots=True)
class CompiledPull:
    """The way back through projections of arrays of one shape, dtype and layout."""

    plan: Plan
    kernel: PullKernel
    source: str
    schedule: PullSchedule


def compile_pull(
    binding: Binding,
    shape: Sequence[int],
    dtype: str,
    strides: Sequence[int] | None = None,
    aligned: bool = True,
) -> CompiledPull:
    """CUDA C++ that takes gradients back through projections that `compile_binding` compiles.

    y, its projection and both gradients lie alike: see `compile_binding` for the arguments.
    """
    strides = c_strides(shape) if strides is None else strides
    began = perf_counter()
    layout = simplify(binding, shape, strides)
    planned = plan(binding.tree.spec, layout, dtype, False, aligned)
    kernel = lower_pull(planned)
    source = render_cuda_pull(kernel)
    made = 1e3 * (perf_counter() - began)
    logger.debug("%s: the stages of its gradients took %.1f ms", planned.spec, made)
    return CompiledPull(planned, kernel, source, pull_schedule(planned, kernel, source))


def compile_binding(
    binding: Binding,
    shape: Sequence[int],
    dtype: str,
    strides: Sequence[int] | None = None,
    out_strides: Sequence[int] | None = None,
    in_place: bool = False,
    aligned: bool = True,
    positive: bool = False,
) -> Compiled:
    """CUDA C++ for arrays of `shape`, and how to launch it.

    `dtype` is one of float16, bfloat16, float32 and float64. `strides` are in elements, by default
    those of C order. `aligned`: y and x start at multiples of 16 bytes, counted from the lowest
    address of each. `positive`: negative values count as 0, and become 0.
    """
    strides = c_strides(shape) if strides is None else strides
    began = perf_counter()
    layout = simplify(binding, shape, strides, out_strides)
    planned = plan(binding.tree.spec, layout, dtype, in_place, aligned)
    kernel = lower(planned, positive)
    source = render_cuda(kernel)
    logger.debug("%s: stages 2 to 5 took %.1f ms", planned.spec, 1e3 * (perf_counter() - began))
    return Compiled(planned, kernel, source, schedule(planned, kernel, source))
