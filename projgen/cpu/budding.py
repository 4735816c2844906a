"""Groups of zeros on the way back: whether they would be left, if they grew a little.

A group whose value is 0 has a radius of 0, like one that is dead. But what grows in it is left
whole where the group that it belongs to is inside its ball, or clips; in one that l1 thins out
nothing of it is; in one that l2 scales it is scaled. The kernels know of groups that are left
whole: they have an infinite radius. The part is multiplied in afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from projgen.cpu.tape import TapeLayout
from projgen.gradient_rules import kept
from projgen.references import rule_of

if TYPE_CHECKING:
    from projgen.plan import Plan
    from projgen.stage import Stage

Array = NDArray[Any]
Radii = NDArray[np.float64]


def enlivened(plan: Plan, tape: Radii, budding: Radii | None = None) -> tuple[Radii, Radii | None]:
    """A tape for the kernel, and of each of the leaf's groups what part of it would be left.

    `budding` says that of the first level's groups, where their value is 0 (None: all of what has a
    radius). The second is None where no group of the leaf has the value 0.
    """
    layout = TapeLayout.of(plan)
    if layout.norms(tape).all() and all(values.all() for values, _ in layout.levels(tape)):
        return tape, None
    tape = tape.copy()
    radii, norms = layout.radii(tape), layout.norms(tape)
    own = np.where(radii > 0, 1.0, 0.0) if budding is None else budding
    radii[norms == 0] = np.where(own[norms == 0] > 0, np.inf, 0.0)
    for stage, (values, left) in zip(plan.stages, layout.levels(tape), strict=False):
        own = handed_on(plan, stage, radii, norms, own)
        zero = values == 0
        left[zero] = np.where(own[zero] > 0, np.inf, 0.0)
        radii, norms = left, values
    return tape, None if norms.all() else np.where(norms == 0, own, 1.0)


def handed_on(plan: Plan, stage: Stage, radii: Radii, norms: Radii, own: Radii) -> Radii:
    """What part of a level's values would be left, if they are 0, by their groups' radii and norms;
    and by that of the groups, for those of value 0. In memory order."""
    found = kept(rule_of(stage.norm), norms, radii, own)
    loops = plan.layout.loops_above(stage.level)
    across = [1 if loop.level == stage.level else loop.extent for loop in loops]
    extents = [loop.extent for loop in loops]
    return np.broadcast_to(found.reshape(across), extents).reshape(-1)


def of_values(plan: Plan, tape: Radii, own: Radii | None) -> Radii:
    """`handed_on` by the leaf, whose groups are `own`: see `enlivened`."""
    norms, radii = TapeLayout.of(plan).groups(tape)
    return handed_on(plan, plan.leaf, radii, norms, np.ones_like(norms) if own is None else own)


def thin_out(plan: Plan, own: Radii | None, result: Array) -> None:
    """Multiply the gradients in with what part of their group would be left: of a `result` from its
    first element in memory on."""
    if own is None or not np.any((own > 0) & (own < 1)):
        return
    loops, leaf = plan.layout.loops, plan.leaf.level
    strides = [loop.stride * result.itemsize for loop in loops]
    across = [1 if loop.level == leaf else loop.extent for loop in loops]
    entries = as_strided(result, [loop.extent for loop in loops], strides)
    entries *= own.reshape(across).astype(result.dtype)


__all__ = ["enlivened", "of_values", "thin_out"]
