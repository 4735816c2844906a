"""Time projections in shards on this machine, beside those of one process: docs/sharded.md's table.

    python benchmarks/sharded.py [--quick]

A weight of 4000 x 1000 float32 with Gaussian entries, on two processes of one thread each; the
radius is a tenth of the norm. Both kinds take turns in one run. Times are medians, of a turn in
shards the time of the slower rank. What is sent is what a rank gives to collectives. The first run
compiles kernels, for a minute or more.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import projgen
from projgen.torch.sharded import wire

RANKS = 2
SHAPE = 4000, 1000
CASES = (
    ("l1(linf(axis=1))", 0),
    ("l1(l2(axis=1))", 1),
    ("l1(axis=1)", 0),
    ("l1(l1(axis=1))", 0),
    ("l1(l1(axis=1))", 1),
    ("l1", 0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few turns of each")
    turns = 5 if parser.parse_args().quick else 60
    with tempfile.TemporaryDirectory() as directory:
        store = f"file://{directory}/store"
        multiprocessing.spawn(take_part, (store, turns), nprocs=RANKS)


def take_part(rank: int, store: str, turns: int) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    if rank == 0:
        print("| Spec | Placement | Sent by a rank | Collectives | One process | Two |")
        print("|---|---|---|---|---|---|")
    for spec, axis in CASES:
        numbers, alone, together = measured(spec, axis, turns)
        if rank == 0:
            size = 8 * sum(numbers)
            sent = f"{size} bytes" if size < 1000 else f"{size / 1000:.0f} kB"
            times = f"{1e3 * alone:.1f} ms | {1e3 * together:.1f} ms"
            row = f"| `{spec}` | `Shard({axis})` | {sent} | {len(numbers)} | {times} |"
            print(row, flush=True)
    dist.destroy_process_group()


def measured(spec: str, axis: int, turns: int) -> tuple[list[int], float, float]:
    """The numbers that a rank gives to each collective, and the times of one process and of all."""
    y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    mesh = init_device_mesh("cpu", (RANKS,))
    shards = distribute_tensor(y, mesh, [Shard(axis)], src_data_rank=None)
    p = projgen.build(spec, threads=1)
    radius = 0.1 * p.norm(y)
    in_shards = partial(p, shards, radius, out=torch.empty_like(shards))
    in_one = partial(p, y, radius, out=torch.empty_like(y))

    numbers: list[int] = []

    def counted(function: Callable[..., Any], which: int) -> Callable[..., Any]:
        def call(*tensors: Any, **options: Any) -> Any:
            numbers.append(tensors[which].numel())
            return function(*tensors, **options)

        return call

    with (
        patch.object(dist, "all_reduce", counted(dist.all_reduce, 0)),
        patch.object(wire, "_gather_single", counted(wire._gather_single, 1)),
    ):
        in_shards()
    times = torch.zeros(2, turns + 2, dtype=torch.float64)
    for turn in range(turns + 2):
        dist.barrier()
        times[1, turn] = seconds(in_shards)
        dist.barrier()
        if dist.get_rank() == 0:  # the other process waits
            times[0, turn] = seconds(in_one)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    alone, together = (median(own[2:].tolist()) for own in times)  # kernels are loaded in two turns
    return numbers, alone, together


def seconds(call: Callable[[], Any]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started


if __name__ == "__main__":
    main()
