"""Tensors in shards on the ranks of a device mesh: PyTorch's `DTensor`, as FSDP2 has it.

Each rank aggregates its shard, only values of groups cross the network, then each rank applies.
See docs/sharded.md.
"""

from projgen.torch.sharded.calls import active, norm, project

__all__ = ["active", "norm", "project"]
