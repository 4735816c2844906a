"""A plan to a kernel: every decision that the generated CPU source shows, and none of its text."""

from collections.abc import Iterator

from projgen.cpu.alike import stage_codes
from projgen.cpu.geometry import NEWTON_TURNS, cells, scratch, segments
from projgen.cpu.kernel import Kernel, Phase
from projgen.cpu.stages import StageCode
from projgen.plan import Plan

VERSION = 2  # of the generated code


def lower(plan: Plan, positive: bool = False) -> Kernel:
    """The kernel of `plan`. Plans that differ only in extents, strides and blocks share it.

    `positive`: it projects on the part of the ball that has no negative values.
    """
    stages = stage_codes(plan, positive)
    phases = tuple(_phases(stages))
    return Kernel(
        title=plan.spec,
        dtype=plan.dtype,
        notes=tuple(_notes(plan)),
        in_place=plan.in_place,
        positive=positive,
        stages=stages,
        phases=phases,
        segments=tuple((segment.name, segment.dtype) for segment in segments(plan, stages)),
        cells=tuple(name for name, _ in cells(plan, stages, 1)),
        numbers=phases[-1].number,
        scratch=scratch(stages) > 0,
        newton_turns=NEWTON_TURNS,
        version=VERSION,
    )


def _phases(stages: tuple[StageCode, ...]) -> Iterator[Phase]:
    """Up the tree, check, down the tree: what the threads share, and what one does after it."""
    actions: list[tuple[str, StageCode | None]] = []
    for s in reversed(stages):
        actions.append(("aggregate", s))
        if not s.stage.direct:
            actions.append(("combine", s))
    actions.append(("check", None))
    joint = stages[-1].joint
    for s in stages[-1:] if joint else stages:
        if s.threshold == "sweep" or joint:
            actions += [("start", s), ("newton", s)]
        elif s.hinted:
            actions += [("hint", s)] if s.stage.shared else []
            actions.append(("thresholds", s))
        elif s.sorted_aside:
            actions.append(("thresholds", s))
        elif s.limited:
            actions.append(("limits", s))
        actions.append(("project", s))
    number, shared = 1, [i for i, step in enumerate(actions) if _is_shared(*step)]
    assert shared[0] == 0 and shared[-1] == len(actions) - 1, "the leaf's sweeps are shared"
    for i, following in zip(shared, [*shared[1:], len(actions)], strict=True):
        kind, stage = actions[i]
        assert stage is not None
        final = i == shared[-1]
        yield Phase(kind, stage, number, tuple(actions[i + 1 : following]), final)
        number += NEWTON_TURNS if kind == "newton" else 1


def _is_shared(action: str, stage: StageCode | None) -> bool:
    """Whether threads share it; else the one that ends what came before does it alone."""
    if stage is None or not stage.stage.shared:
        return action == "newton"
    return action in ("aggregate", "project", "thresholds", "newton")


def _notes(plan: Plan) -> Iterator[str]:
    """What the source's docstring says of the plan: nothing that depends on extents."""
    for stage in plan.stages:
        order = ", ".join("reduced" if axis.reduced else "groups" for axis in stage.axes)
        source = "y" if stage.leaf else f"v{stage.level}"
        way = f"; threshold by {stage.threshold}" if stage.threshold else ""
        yield f"level {stage.level}  {stage.norm:4}  of {source}: {stage.walk} ({order}){way}"
