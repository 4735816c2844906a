"""The plan of a tree for a GPU: that of `projgen.tree_plan`, with a GPU's kernels."""

from __future__ import annotations

from projgen.bind import Binding
from projgen.cpu.ball import Ball
from projgen.cuda.compiler import compile_binding
from projgen.cuda.groups import walk_groups
from projgen.cuda.part_sweeps import CudaChainSweep, CudaGroupSweep
from projgen.loops import Offsets
from projgen.part_sweeps import Sweep
from projgen.tree_plan import Planner


class CudaPlanner(Planner):
    """Parts to their plans, of a tree that a GPU takes."""

    def chain(
        self,
        binding: Binding,
        shape: tuple[int, ...],
        dtype: str,
        strides: tuple[int, ...],
        out_strides: tuple[int, ...] | None,
        groups: int,
        positive: bool = False,
    ) -> Sweep:
        compiled = compile_binding(
            binding, shape, dtype, strides, out_strides, out_strides is None, positive=positive
        )
        return CudaChainSweep(shape, dtype, groups, compiled)

    def level(
        self,
        ball: Ball,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        axes: tuple[int, ...],
        out_strides: tuple[int, ...] | None,
        weight_strides: tuple[int, ...] | None,
        labels: Offsets | None,
        weight_dtype: str,
        groups: int,
    ) -> Sweep:
        ways = strides, axes, out_strides, weight_strides, labels, weight_dtype
        walk = walk_groups(ball, dtype, shape, *ways)
        return CudaGroupSweep(shape, dtype, groups, walk, out_strides is None)


__all__ = ["CudaPlanner"]
