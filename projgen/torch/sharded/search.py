"""The threshold of l1 balls whose groups are spread over ranks, found by all of them together.

A group's threshold t is where what is left of it, the sum of ``|y| - t`` over the values above t,
is the radius. Newton's method comes to it from below: from each t, by what is left too much,
shared among the values above. What is left is convex in t, so no step goes too far, and fewer
values are above t after each; when none went, t is the threshold. Each step costs a sweep over
the shard, and crosses the network with two numbers for each group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from projgen.torch.sharded.wire import Values, Wire

STEPS = 100  # at most; a dozen is usual, and each takes away values until none is left to take
PIECE = 1 << 16  # values that are worked on at a time, and stay in a core's cache


def shares(
    y: Tensor,
    axes: Sequence[int],
    size: int,
    whole: Values,
    radii: Values,
    wire: Wire,
    along: Sequence[int],
) -> Values:
    """Of each group's radius the part that this rank's piece of it gets.

    Args:
        y: the shard.
        axes: those that a group spans; others have a group for each index.
        size: how many values a group has on all ranks.
        whole: the groups' values, joined.
        radii: what they are projected on, below those values.
        wire, along: the ranks that have pieces of the same groups.
    """
    seeks = radii > 0
    thresholds = np.where(seeks, (whole - radii) / size, np.inf)  # of others nothing is left
    above = np.full(whole.shape, float(size))
    for _ in range(STEPS):
        left, here = _left(y, thresholds, axes)
        excess, count = wire.sums([left, here], along)
        seeks &= (count < above) & (excess > radii)
        if not seeks.any():
            break
        above = count
        step = (excess - radii) / np.maximum(count, 1.0)
        thresholds = np.where(seeks, thresholds + step, thresholds)
    return left


def _left(y: Tensor, thresholds: Values, axes: Sequence[int]) -> tuple[Values, Values]:
    """Of each group the sum of what its values exceed the threshold by, and how many do."""
    left, count = np.zeros(thresholds.shape), np.zeros(thresholds.shape)
    if not y.numel():
        return left, count
    shape = [1 if axis in axes else extent for axis, extent in enumerate(y.shape)]
    limits = torch.from_numpy(thresholds).reshape(shape)
    sums, numbers = (torch.from_numpy(each).reshape(shape) for each in (left, count))
    rows = max(1, PIECE * y.shape[0] // y.numel()) if y.ndim else 1
    dims = tuple(axes)
    for start in range(0, y.shape[0], rows):
        own = slice(0, 1) if 0 in axes else slice(start, start + rows)
        over = y[start : start + rows].abs().double().sub_(limits[own]).clamp_(min=0)
        sums[own] += over.sum(dim=dims, keepdim=True)
        numbers[own] += over.count_nonzero(dim=dims).reshape(numbers[own].shape)
    return left, count


__all__ = ["shares"]
