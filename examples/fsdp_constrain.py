"""Train a network in shards, with FSDP2, and keep the features that count.

torchrun --nproc-per-node 2 fsdp_constrain.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import projgen.torch


def main(epochs: int = 10) -> None:
    ranks, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(0)  # model and data are the same on all ranks
    x = torch.randn(1000, 50)
    y = (x[:, :5].sum(1) > 0).long()  # 5 of 50 features count
    model = nn.Sequential(nn.Linear(50, 32), nn.SiLU(), nn.Linear(32, 2))

    mesh = init_device_mesh("cpu", (ranks,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    constraint = projgen.torch.constrain(
        optimizer, model, {"0": "l1(linf(axis=0))"}, radius=0.7, every="epoch"
    )

    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(24):
            mine = batch[rank::ranks]  # each rank has a part of the batch; FSDP joins gradients
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
            optimizer.step()
        constraint.epoch_end()

    (standing,) = constraint.standings()  # all ranks ask; one of them prints
    if rank == 0:
        print(f"{standing.active} of {standing.groups} features are left, on {ranks} ranks")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
