"""The workspace of a kernel, and what it needs to know of one call: extents, blocks, offsets."""

from collections.abc import Iterator

from projgen.cpu.alike import stage_codes
from projgen.cpu.kernel import Segment
from projgen.cpu.stages import StageCode
from projgen.dtypes import ITEMSIZE
from projgen.plan import Plan

NEWTON_TURNS = 24  # threshold sweeps shared among the threads, before one of them goes on alone


def geometry(plan: Plan, threads: int) -> dict[str, int]:
    """The cells of one call of a kernel, by name and in `Kernel.cells` order."""
    return dict(cells(plan, stage_codes(plan), threads))


def cells(plan: Plan, stages: tuple[StageCode, ...], threads: int) -> Iterator[tuple[str, int]]:
    """The geometry, cell by cell: first the extents and blocks, then where things lie."""
    loops = plan.layout.loops
    yield "y_size", 1 + sum((loop.extent - 1) * loop.stride for loop in loops)
    yield "x_size", 1 + sum((loop.extent - 1) * loop.out_stride for loop in loops)
    for s in stages:
        axes = list(enumerate(s.stage.axes))
        yield from ((f"n{i}_{s.level}", axis.extent) for i, axis in axes)
        yield from ((f"s{i}_{s.level}", axis.stride) for i, axis in axes)
        yield from ((f"t{i}_{s.level}", axis.out_stride) for i, axis in axes)
        yield f"pitch_{s.level}", s.width
        yield f"lanes_{s.level}", s.stage.lanes
        for prefix, cut in (("", s.stage.cut), ("tile_", s.stage.tiles)):
            yield f"{prefix}blocks_{s.level}", cut.blocks
            yield f"{prefix}step_{s.level}", cut.step
            yield f"{prefix}end_{s.level}", s.stage.axes[cut.loop].extent
    at = 0
    for segment in segments(plan, stages):
        yield f"{segment.name}_at", at
        yield f"{segment.name}_end", at + -(-segment.size * segment.itemsize // 8)
        at += segment.cells
    own = scratch(stages)
    if own:
        yield "scratch_at", at
        yield "scratch_size", own
    yield "seats", threads
    yield "memory_size", at + own * threads


def segments(plan: Plan, stages: tuple[StageCode, ...]) -> list[Segment]:
    """The workspace: radii and norms first, where the caller writes and reads them."""
    found = [Segment("radius", "float64", plan.batch), Segment("total", "float64", plan.batch)]
    for s in stages:
        stage = s.stage
        if not s.leaf:
            found.append(Segment(f"v{s.level}", "float64", stage.size))
            if not stages[-1].joint:
                found.append(Segment(f"u{s.level}", "float64", stage.size))
        slots = stage.columns * (stage.cut.blocks if s.partial else 1)
        if not stage.direct or s.threshold == "sweep":
            found.append(Segment(f"slots_{s.level}", s.accumulator, slots))
        if s.joint:
            found += [Segment(f"{n}_{s.level}", "float64", slots) for n in ("excesses", "counts")]
            found.append(Segment(f"count_{s.level}", "float64", stage.groups))
            names = "theta", "intercept", "slope"
            found += [Segment(name, "float64", plan.batch) for name in names]
        if s.limited:
            found.append(Segment(f"limit_{s.level}", s.dtype, stage.columns))
        if s.hinted:
            found.append(Segment(f"hints_{s.level}", "float64", 8))
        if s.threshold == "sweep":
            found.append(Segment(f"counts_{s.level}", "float64", slots))
            found.append(Segment(f"count_{s.level}", "float64", stage.groups))
    return found


def row_length(values: int) -> int:
    """How far apart a tile has columns that were made rows, as the templates have it."""
    return (values // 16 + 1 | 1) * 16


def scratch(stages: tuple[StageCode, ...]) -> int:
    """The float64 cells of one thread's scratch memory."""
    sizes = [0]
    for s in stages:
        itemsize = ITEMSIZE[s.dtype]
        rows, pitch = s.stage.group_size, s.width
        if s.sampled:
            sizes.append(4096 * itemsize // 8)
        if s.copied:
            sizes.append(-(-rows * itemsize // 8))
        if s.turned:
            room = max(s.stage.bundle, 8) * row_length(rows) if s.squared else rows
            sizes += [s.pattern, -(-(4 * s.pattern + room) * itemsize // 8)]
        if s.gathered:
            sizes.append(rows)
        if s.abreast:
            width = pitch if s.threshold == "tile" else 16
            sizes.append(104 + 16 + rows * width * itemsize // 8)
        if s.transposed:
            sizes.append(8 + row_length(rows) * pitch * itemsize // 8)
        if s.sorted_aside:
            sizes.append((rows + 1) * pitch * itemsize // 8)
        if s.walk == "packed":
            runs = 2 if s.half else 1  # dealt, and as they come
            sizes.append(max((runs * rows + 2) * pitch * itemsize // 8, rows * pitch))
    return -(-max(sizes) // 8) * 8
