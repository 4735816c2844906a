"""What of a DTensor is zero: each rank looks at its shard, and counts cross the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from projgen.torch.sharded.operand import sharding_of
from projgen.torch.sharded.wire import Wire
from projgen.torch.shards import local


@dataclass(frozen=True, slots=True)
class Survey:
    """How many entries are ``zero``; along each of the axes that were asked for how many slices
    are not all zero; the Euclidean ``length`` of all entries, and the ``largest`` magnitude."""

    zero: int
    alive: tuple[int, ...]
    length: float
    largest: float


def survey(tensor: Any, axes: Sequence[int]) -> Survey:
    """A look at a DTensor; all ranks of its mesh take it together."""
    sharding, _ = sharding_of(tensor)
    wire = Wire(tensor.device_mesh)
    shard = local(tensor).double()
    nonzero = shard != 0
    top = float(shard.abs().max()) if shard.numel() else 0.0
    (found,) = wire.largest([np.array([top])], wire.everywhere)
    largest = float(found[0])
    scale = largest if 0 < largest < np.inf else 1.0  # no square of a share is out of range
    counts = [float(nonzero.numel() - torch.count_nonzero(nonzero))]
    counts.append(float((shard / scale).square().sum()))
    cuts = [along for along, _ in sharding.cuts]
    (sums,) = wire.sums([np.array(counts)], cuts)
    alive: list[int] = []
    for axis in axes:
        others = [other for other in range(shard.ndim) if other != axis]
        seen = nonzero.any(dim=others) if nonzero.numel() else nonzero.new_zeros(shard.shape[axis])
        across = [along for along, own in sharding.cuts if own != axis]
        (any_rank,) = wire.largest([seen.double().cpu().numpy()], across)
        along_axis = [along for along, own in sharding.cuts if own == axis]
        (count,) = wire.sums([np.array([float(np.count_nonzero(any_rank))])], along_axis)
        alive.append(int(count[0]))
    return Survey(int(sums[0]), tuple(alive), float(np.sqrt(sums[1])) * scale, largest)


__all__ = ["Survey", "survey"]
