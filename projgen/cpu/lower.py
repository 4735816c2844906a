"""A plan to a kernel: every decision that the generated CPU source shows, and none of its text."""

from collections.abc import Iterator

from projgen.cpu.geometry import NEWTON_TURNS, cells, scratch, segments
from projgen.cpu.kernel import Kernel, Phase, StageCode, stage_codes
from projgen.plan import Plan

VERSION = 1  # of the generated code


def lower(plan: Plan) -> Kernel:
    """The kernel of `plan`. Plans that differ only in extents, strides and blocks share it."""
    stages = stage_codes(plan)
    phases = tuple(_phases(stages))
    return Kernel(
        title=plan.spec,
        dtype=plan.dtype,
        notes=tuple(_notes(plan)),
        in_place=plan.in_place,
        stages=stages,
        phases=phases,
        segments=tuple((segment.name, segment.dtype) for segment in segments(plan, stages)),
        cells=tuple(name for name, _ in cells(plan, stages, 1)),
        counters=phases[-1].counter + 1,
        scratch=scratch(stages) > 0,
        newton_turns=NEWTON_TURNS,
        version=VERSION,
    )


def _phases(stages: tuple[StageCode, ...]) -> Iterator[Phase]:
    """Up the tree, check, down the tree; what one thread does in a row is one phase."""
    actions: list[tuple[str, StageCode | None]] = []
    for s in reversed(stages):
        actions.append(("aggregate", s))
        if not s.stage.direct:
            actions.append(("combine", s))
    actions.append(("check", None))
    for s in stages:
        if s.threshold == "sweep":
            actions += [("start", s), ("newton", s)]
        elif s.threshold == "tile":
            actions += [("hint", s)] if s.stage.shared else []
            actions.append(("thresholds", s))
        elif s.limited:
            actions.append(("limits", s))
        actions.append(("project", s))
    counter = 0
    solo: list[tuple[str, StageCode | None]] = []
    for action, stage in actions:
        blocks = action in ("aggregate", "project", "thresholds")
        if not (action == "newton" or (blocks and stage and stage.stage.shared)):
            solo.append((action, stage))
            continue
        if solo:
            yield Phase("solo", None, tuple(solo), counter)
            solo, counter = [], counter + 1
        yield Phase(action, stage, (), counter)
        counter += 2 * NEWTON_TURNS + 1 if action == "newton" else 1
    assert not solo, "the leaf's projection comes last, and it is shared"


def _notes(plan: Plan) -> Iterator[str]:
    """What the source's docstring says of the plan: nothing that depends on extents."""
    for stage in plan.stages:
        order = ", ".join("reduced" if axis.reduced else "groups" for axis in stage.axes)
        source = "y" if stage.leaf else f"v{stage.level}"
        way = f"; threshold by {stage.threshold}" if stage.threshold else ""
        yield f"level {stage.level}  {stage.norm:4}  of {source}: {stage.walk} ({order}){way}"
