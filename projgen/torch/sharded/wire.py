"""What crosses the network: reductions and gatherings of small vectors, and what ranks agree on.

Every rank of a mesh makes the same calls in the same order, whatever its shard holds. So a rank
whose shard is refused still takes part in `Wire.agree`, where all of them learn of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

Values = NDArray[np.float64]

NOT_FINITE, TOO_LARGE, FAILED = 1.0, 2.0, 3.0  # what may be wrong with a rank: the worst last
_RANKS = 2.0**32  # more than there are

_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True, slots=True)
class Word:
    """What a rank says before anything is joined: what is ``wrong`` with its shard, if not 0; a
    ``mark`` of its arguments, which must be that of all; its ``largest`` and ``smallest`` value of
    groups in pieces, without zeros."""

    wrong: float = 0.0
    mark: int | None = None
    largest: float = 0.0
    smallest: float = math.inf


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with the ``rank``, or 0; whether all are about the same; and the largest and
    smallest value of any rank."""

    wrong: float
    rank: int
    alike: bool
    largest: float
    smallest: float


class Wire:
    """The network between the ranks of a mesh. Axes are the mesh's."""

    def __init__(self, mesh: Any) -> None:
        self._groups = [mesh.get_group(along) if mesh.size(along) > 1 else None
                        for along in range(mesh.ndim)]  # fmt: skip
        self.everywhere = tuple(range(mesh.ndim))
        self.rank = dist.get_rank()
        self._device = mesh.device_type

    def agree(self, own: Word) -> Verdict:
        """What all ranks of the mesh say: one small reduction for each of its axes."""
        marks = (-math.inf, -math.inf) if own.mark is None else (own.mark, -own.mark)
        failing = own.wrong * _RANKS + self.rank if own.wrong else 0.0
        word = np.array([failing, *marks, own.largest, -own.smallest])
        (word,) = self.largest([word], self.everywhere)
        failing, mark, other, largest, smallest = word.tolist()
        wrong, rank = divmod(failing, _RANKS)
        alike = mark == -other or not math.isfinite(mark)
        return Verdict(wrong, int(rank), alike, largest, -smallest)

    def largest(self, vectors: Sequence[Values], along: Sequence[int]) -> list[Values]:
        """The largest of each number among the ranks along axes of the mesh."""
        return self._reduced(vectors, along, dist.ReduceOp.MAX)

    def sums(self, vectors: Sequence[Values], along: Sequence[int]) -> list[Values]:
        """The sum of each number over those ranks; the same to the bit on all of them."""
        return self._reduced(vectors, along, dist.ReduceOp.SUM)

    def _reduced(
        self, vectors: Sequence[Values], along: Sequence[int], operation: Any
    ) -> list[Values]:
        sent = np.concatenate([vector.reshape(-1) for vector in vectors])
        groups = [self._groups[axis] for axis in along if self._groups[axis] is not None]
        if sent.size and groups:
            numbers = torch.from_numpy(sent).to(self._device)
            for group in groups:
                dist.all_reduce(numbers, operation, group=group)
            sent = numbers.cpu().numpy()
        return _split(sent, [vector.shape for vector in vectors])

    def gather(
        self, along: int, pieces: Sequence[Values], axes: Sequence[int], sizes: Sequence[list[int]]
    ) -> list[Values]:
        """Arrays whose pieces lie on the ranks along one axis of the mesh, put together.

        Each piece has one of `axes` of its own, along which the ranks have as many indices as
        `sizes` says.
        """
        group = self._groups[along]
        if group is None:
            return [*pieces]
        padded: list[Values] = []
        for piece, axis, own in zip(pieces, axes, sizes, strict=True):
            rows = np.moveaxis(piece, axis, 0)
            room = np.zeros((max(own), *rows.shape[1:]))
            room[: len(rows)] = rows
            padded.append(room)
        sent = np.concatenate([room.reshape(-1) for room in padded])
        ranks = len(sizes[0])
        there = torch.empty(ranks * sent.size, dtype=torch.float64, device=self._device)
        if sent.size:
            _gather_single(there, torch.from_numpy(sent).to(self._device), group=group)
        found = there.cpu().numpy().reshape(ranks, -1)
        shapes = [room.shape for room in padded]
        parts = [_split(row, shapes) for row in found]
        whole: list[Values] = []
        for number, (axis, own) in enumerate(zip(axes, sizes, strict=True)):
            rows = np.concatenate([parts[i][number][: own[i]] for i in range(ranks)])
            whole.append(np.moveaxis(rows, 0, axis))
        return whole


def _split(vector: Values, shapes: Sequence[tuple[int, ...]]) -> list[Values]:
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = np.split(vector, ends)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


__all__ = ["FAILED", "NOT_FINITE", "TOO_LARGE", "Values", "Verdict", "Wire", "Word"]
