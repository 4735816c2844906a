"""How to launch a kernel that takes gradients back: grids, arguments, workspace.

It reads the workspace that the projection left, its tape, and has one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from projgen.cuda.launches import (
    Launch,
    Part,
    check_grids,
    geometry,
    middle_threads,
    packed_geometry,
    placed,
    tape_parts,
)
from projgen.cuda.plan import blocks
from projgen.cuda.pull_kernel import PullKernel
from projgen.plan import Plan


@dataclass(frozen=True, slots=True)
class PullSchedule:
    """A call's launches, as those of `projgen.cuda.launches.Schedule`.

    Arguments are those of a `Launch`, and "dx" and "dy" (pointers to the lowest elements of the
    gradients of x and of y) and "tape" (to what the projection left). The gradients of the
    radii, one float64 for each batch entry, stand at the beginning of the workspace.
    """

    launches: tuple[Launch, ...]
    work: int
    geometry: bytes
    parts: tuple[Part, ...]


def pull_schedule(plan: Plan, kernel: PullKernel, source: str) -> PullSchedule:
    """How to launch the functions of `source`, that of `kernel`, for the arrays of `plan`.

    A ValueError for more groups than a GPU's launch can have blocks for.
    """
    launches = tuple(_launches(plan, kernel))
    check_grids(plan, launches)
    own = tuple(parts(plan, kernel))
    _, work = placed(own)
    return PullSchedule(
        launches,
        work,
        packed_geometry(kernel, source, dict(offsets(plan, kernel)), dict(geometry(plan, kernel))),
        own,
    )


def _launches(plan: Plan, kernel: PullKernel) -> Iterator[Launch]:
    """Up the tree, through the middle, down the tree."""
    for p in reversed(kernel.stages):
        grid = (blocks(p.stage), p.stage.cut.blocks, 1)
        yield Launch(f"gather_{p.level}", grid, (p.threads, 1, 1), p.gathers_of)
        if p.slotted and not (kernel.levels and p.level == kernel.stages[0].level):
            each = 1 if p.stage.lanes == 1 else 32
            joiners = -(-p.stage.groups * each // p.joiners)
            yield Launch(f"join_{p.level}", (joiners, 1, 1), (p.joiners, 1, 1), p.joins_of)
    if kernel.levels:
        block = (middle_threads(plan, kernel), 1, 1)
        yield Launch("middle", (plan.batch, 1, 1), block, kernel.middle_of)
    for p in kernel.stages:
        grid = (blocks(p.stage), p.stage.cut.blocks, 1)
        yield Launch(f"share_{p.level}", grid, (p.threads, 1, 1), p.shares_of)


def parts(plan: Plan, kernel: PullKernel) -> Iterator[Part]:
    """The workspace: the gradients of the radii first, where the host finds them."""
    for p in kernel.ruled:
        stage = plan.stages[p.level]
        groups = stage.groups
        yield Part(p.slopes, "double", groups)
        if p.shares_top:
            yield Part(f"ties_{p.level}", kernel.index, groups)
    for level in kernel.levels:
        if not level.root:
            yield Part(level.rise, "double", plan.stages[level.level].groups)
    for p in kernel.stages:
        yield from (Part(f"{c}_{p.level}", p.real, p.stage.groups) for c in p.coefficients)
        if p.slotted:
            slots = p.stage.cut.blocks * p.stage.lanes * p.stage.groups
            yield Part(f"sums_{p.level}", "double", slots)
            if p.counts:
                yield Part(f"counts_{p.level}", kernel.index, slots)


def offsets(plan: Plan, kernel: PullKernel) -> Iterator[tuple[str, int]]:
    """Where the parts of both workspaces begin."""
    for own in (tuple(tape_parts(plan, kernel)), tuple(parts(plan, kernel))):
        begins, _ = placed(own)
        yield from zip((part.name for part in own), begins, strict=True)
