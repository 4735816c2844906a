"""How a level's work is cut into blocks for the threads: by its shape, not by their number."""

import math
from collections.abc import Sequence

from projgen import caches
from projgen.stage import Axis, Cut, Walk

MAX_BLOCKS = 256
WIDE = 1024  # columns from here on fill the vectors and the loops' overhead is small


def cut_loop(axes: Sequence[Axis], loop: int, itemsize: int, bundle: int = 1) -> Cut:
    """A loop in blocks of about `BLOCK_BYTES`, each of them whole bundles of turns."""
    size = math.prod(axis.extent for axis in axes)
    extent = axes[loop].extent
    blocks = min(-(-size * itemsize // caches.BLOCK_BYTES), MAX_BLOCKS, _most_blocks(axes, loop))
    step = -(-extent // blocks)
    if axes[loop].reduced and not axes[-1].reduced:  # rows of columns are read several at once
        several = 16 if step >= 64 else 4
        step = -(-step // several) * several
    step = -(-step // bundle) * bundle
    return Cut(loop, step, -(-extent // step))


def loop_to_cut(axes: Sequence[Axis], walk: Walk) -> int:
    """The outermost loop that makes enough blocks; else the one that makes the most."""
    candidates = range(len(axes) - 1) if walk is Walk.PACKED else range(len(axes))
    enough = [i for i in candidates if _most_blocks(axes, i) >= 16]
    return enough[0] if enough else max(candidates, key=lambda i: _most_blocks(axes, i))


def longest_over_groups(axes: Sequence[Axis]) -> int:
    """The loop to cut where blocks are to hold whole groups."""
    return max(range(len(axes)), key=lambda i: (not axes[i].reduced) * axes[i].extent)


def _most_blocks(axes: Sequence[Axis], loop: int) -> int:
    """Into how many blocks a loop can well be cut."""
    extent = axes[loop].extent
    if axes[loop].reduced:  # each block has its own accumulators: they should stay few
        return max(1, min(extent, 32, math.prod(a.extent for a in axes if a.reduced) // 64))
    # The innermost loop is best left long.
    return extent if loop < len(axes) - 1 else max(1, extent // (4 * WIDE))


__all__ = ["MAX_BLOCKS", "WIDE", "cut_loop", "longest_over_groups", "loop_to_cut"]
