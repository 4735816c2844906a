"""DTensors beside tensors: the shard that a rank has, and the whole of small ones.

PyTorch has the type only once something has imported it, so nothing here imports it.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_sharded(value: Any) -> bool:
    """Whether `value` is a `DTensor`."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The memory of a tensor that is on this rank: of a DTensor its shard, of others all."""
    if not is_sharded(tensor):
        return tensor.detach()
    sharded: Any = tensor.detach()
    shard: Any = sharded.to_local()
    waited: Tensor = shard.wait() if hasattr(shard, "wait") else shard
    return waited


def whole(value: Any) -> Any:
    """`value`, or if it is a DTensor all of it, on every rank: for what is small."""
    return value.full_tensor() if is_sharded(value) else value


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors, or their shards, begin at the same address; not if they are empty."""
    a, b = local(a), local(b)
    return bool(a.numel() and a.device == b.device and a.data_ptr() == b.data_ptr())


__all__ = ["is_sharded", "local", "same_memory", "whole"]
