"""Which levels of a plan are alike: they share functions, to be compiled once."""

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import replace

from projgen.cpu.stages import StageCode
from projgen.dtypes import arithmetic
from projgen.plan import Plan
from projgen.stage import Cut


def stage_codes(plan: Plan, positive: bool = False) -> tuple[StageCode, ...]:
    """Above the leaf, levels work on dense vectors of float64, none of them below 0."""
    codes = []
    for stage in plan.stages:
        own = (stage.level,)
        stored = plan.dtype if stage.leaf else "float64"
        code = StageCode(
            stage,
            arithmetic(stored),
            stored,
            in_place=stage.leaf and plan.in_place,
            streamed=stage.leaf and plan.streamed,
            levels=own,
            searchers=own,
            positive=stage.leaf and positive,
        )
        codes.append(code)
    alike, searching = _levels_by(_form, codes), _levels_by(_search, codes)
    return tuple(replace(s, levels=alike[_form(s)], searchers=searching[_search(s)]) for s in codes)


def _levels_by(
    key: Callable[[StageCode], Hashable], codes: list[StageCode]
) -> dict[Hashable, tuple[int, ...]]:
    levels: defaultdict[Hashable, tuple[int, ...]] = defaultdict(tuple)
    for s in codes:
        levels[key(s)] += (s.level,)
    return levels


def _form(s: StageCode) -> Hashable:
    """Equal for levels whose functions differ in nothing but their arguments."""
    if s.leaf:
        return s.level
    axes = tuple(replace(axis, extent=0, stride=0, out_stride=0) for axis in s.stage.axes)
    cut, tiles = (Cut(cut.loop, 0, 0) for cut in (s.stage.cut, s.stage.tiles))
    return replace(s.stage, level=0, axes=axes, cut=cut, tiles=tiles)


def _search(s: StageCode) -> Hashable:
    """Equal for levels that can use the same search."""
    if s.abreast:
        return "abreast", s.dtype
    if s.by_rows:
        return "row", s.dtype, s.sum_dtype, s.positive
    return s.level
