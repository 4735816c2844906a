"""A plan to a kernel: every decision that the generated CUDA source shows, and none of its text."""

from collections.abc import Iterator
from dataclasses import replace

from projgen.cuda.kernel import Kernel
from projgen.cuda.launches import geometry, level_loops, parts
from projgen.cuda.levels import Axis, Level, StageCode
from projgen.cuda.plan import INDEX_LIMIT, SAMPLE, SWEEPS
from projgen.plan import Plan

VERSION = 1  # of the generated code
BY_BLOCK = 512  # values of a group from which on it takes a block
BY_THREAD = 8  # values of a group up to which it takes one thread


def lower(plan: Plan, positive: bool = False) -> Kernel:
    """The kernel of `plan`. Plans that differ only in extents, strides and pieces share it.

    `positive`: it projects on the part of the ball that has no negative values.
    """
    stages: list[StageCode] = []
    levels: list[Level] = []
    child: StageCode | Level | None = None
    for stage in reversed(plan.stages):
        if stage.shared:
            child = StageCode(stage, plan.dtype, plan.in_place, child, positive)
            stages.insert(0, child)
        else:
            assert child is not None, "the leaf is always shared"
            child = _level(plan, stage.level, stage.norm, child)
            levels.insert(0, child)
    kernel = Kernel(
        title=plan.spec,
        dtype=plan.dtype,
        notes=tuple(_notes(plan)),
        in_place=plan.in_place,
        positive=positive,
        wide=_reach(plan) >= INDEX_LIMIT,
        stages=tuple(stages),
        levels=tuple(levels),
        offsets=(),
        cells=(),
        sweeps=SWEEPS,
        sample=SAMPLE,
        version=VERSION,
    )
    return replace(
        kernel,
        offsets=tuple(f"{part.name}_at" for part in parts(plan, kernel)),
        cells=tuple(name for name, _ in geometry(plan, kernel)),
    )


def _reach(plan: Plan) -> int:
    """The largest offset, in elements, of y and x; or their size, as elements of y may overlap."""
    loops = plan.layout.loops
    return max(
        plan.leaf.size,
        sum((loop.extent - 1) * loop.stride for loop in loops),
        sum((loop.extent - 1) * loop.out_stride for loop in loops),
    )


def _level(plan: Plan, level: int, norm: str, child: StageCode | Level) -> Level:
    axes: dict[str, list[Axis]] = {"b": [], "g": [], "r": []}
    others: list[Axis] = []
    loops = level_loops(plan, level)
    for kind, *_ in loops:
        name = f"{kind}{len(axes[kind])}_{level}"
        axes[kind].append(Axis(f"geo.n_{name}", f"geo.s_{name}", f"geo.t_{name}"))
        if kind != "b":
            others.append(axes[kind][-1])
    groups = size = 1
    for kind, extent, *_ in loops:
        groups *= extent if kind == "g" else 1
        size *= extent if kind == "r" else 1
    team = "block" if groups == 1 or size >= BY_BLOCK else "thread" if size <= BY_THREAD else "warp"
    return Level(
        level,
        norm,
        plan.dtype,
        team,
        tuple(axes["b"]),
        tuple(axes["g"]),
        tuple(axes["r"]),
        tuple(others),
        child,
    )


def _notes(plan: Plan) -> Iterator[str]:
    """What the source's first comment says of the plan: nothing that depends on extents."""
    for stage in plan.stages:
        order = ", ".join("reduced" if axis.reduced else "groups" for axis in stage.axes)
        source = "y" if stage.leaf else f"v{stage.level}"
        way = f"; threshold by {stage.threshold}" if stage.threshold and stage.shared else ""
        where = f"{stage.walk} ({order}){way}" if stage.shared else "in the middle"
        yield f"level {stage.level}  {stage.norm:4}  of {source}: {where}"
