"""The plan of a tree for a GPU: that of `projgen.tree_plan`, with a GPU's kernels."""

from __future__ import annotations

from projgen.bind import Binding
from projgen.cuda.compiler import compile_binding
from projgen.cuda.part_sweeps import CudaChainSweep, WeightedSweep
from projgen.cuda.weighted import WeightedKernel
from projgen.part_sweeps import Sweep
from projgen.parts import Part
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
        self, part: Part, shape: tuple[int, ...], strides: tuple[int, ...], groups: int
    ) -> Sweep:
        return WeightedSweep(shape, "float64", groups, WeightedKernel(part.last.node.norm))


__all__ = ["CudaPlanner"]
