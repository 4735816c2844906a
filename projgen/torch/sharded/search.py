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

from projgen.arrays import Array
from projgen.cpu.tally import Tally
from projgen.torch.sharded.wire import Values, Wire

STEPS = 100  # at most; a dozen is usual, and each takes away values until none is left to take


class Search:
    """The search through one array, made ready: its kernel is compiled, if it is the first."""

    def __init__(self, y: Array, axes: Sequence[int], size: int, along: Sequence[int]) -> None:
        """
        Args:
            y: the shard.
            axes: those that a group spans; others have a group for each index.
            size: how many values a group has on all ranks.
            along: axes of the mesh; the ranks along them have pieces of the same groups.
        """
        self._tally = Tally(y, axes)
        self._size = size
        self._along = along

    def shares(self, whole: Values, radii: Values, wire: Wire) -> Values:
        """Of each group's radius the part that this rank's piece of it gets.

        Args:
            whole: the groups' values, joined.
            radii: what they are projected on, below those values.
            wire: the network, on which those ranks search together.
        """
        size, seeks = float(self._size), radii > 0
        thresholds = np.where(seeks, (whole - radii) / size, np.inf)  # of others nothing is left
        above = np.full(whole.shape, size)
        for _ in range(STEPS):
            left, here = self._tally.above(thresholds)
            excess, count = wire.sums([left, here], self._along)
            seeks &= (count < above) & (excess > radii)
            if not seeks.any():
                break
            above = count
            step = (excess - radii) / np.maximum(count, 1.0)
            thresholds = np.where(seeks, thresholds + step, thresholds)
        return left


__all__ = ["Search"]
