"""Operators for whole trees: kernels project, and the reference takes gradients back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from projgen import calls, pullback
from projgen.dtypes import put
from projgen.projection import Projection
from projgen.structure import flat
from projgen.torch.recipes import array_of, filled, operator, read_recipe, refuse_twice


def _bound(
    ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> tuple[Projection, Any, Any, dict[str, Any]]:
    projection, told = read_recipe(recipe)
    y = filled(told["outline"], [array_of(tensor) for tensor in ys])
    named = {name: array_of(t) for name, t in zip(told["names"], given, strict=True)}
    at = None if projection.tree.root.k is not None else radius.detach().double().numpy()
    return projection, y, at, named


@operator("project_tree")
def project_tree(
    ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> list[Tensor]:
    results = [torch.empty_like(y) for y in ys]
    projection, y, at, named = _bound(ys, given, radius, recipe)
    x = calls.project(projection, y, at, None, named)
    for result, (_, found) in zip(results, flat(x), strict=True):
        np.copyto(array_of(result), found)
    return results


def _fake_project_tree(
    ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> list[Tensor]:
    return [torch.empty_like(y) for y in ys]


project_tree.register_fake(_fake_project_tree)


@operator("pull_tree")
def _pull_tree(
    gs: list[Tensor], ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> tuple[list[Tensor], Tensor]:
    projection, y, at, named = _bound(ys, given, radius, recipe)
    _, taped = calls.taped(projection, y, at, named)
    keys = [key for key, _ in flat(y)]
    known = taped.arrays.keys()
    found = {key: array_of(g.resolve_neg()) for key, g in zip(keys, gs, strict=True)}
    gradients = {key: g for key, g in found.items() if key in known}
    pulled, slopes = pullback.pull_back_tree(projection, taped, gradients)
    results = []
    for key, own, g in zip(keys, ys, gs, strict=True):
        result = torch.empty_like(own)
        if key in pulled:
            put(array_of(result), pulled[key])
        else:
            result.copy_(g)  # it passed unmatched
        results.append(result)
    return results, torch.from_numpy(np.array(slopes, np.float64))


def _fake_pull_tree(
    gs: list[Tensor], ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> tuple[list[Tensor], Tensor]:
    return [torch.empty_like(y) for y in ys], torch.empty(radius.shape, dtype=torch.float64)


_pull_tree.register_fake(_fake_pull_tree)


def _keep_tree(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ys, given, radius, recipe = inputs
    ctx.save_for_backward(*ys, *given, radius)
    ctx.count, ctx.recipe = len(ys), recipe


def _back_tree(ctx: Any, gs: list[Tensor]) -> tuple[list[Tensor], list[None], Tensor, None]:
    *saved, radius = ctx.saved_tensors
    ys, given = saved[: ctx.count], saved[ctx.count :]
    pulled, slopes = _pull_tree(gs, ys, given, radius, ctx.recipe)
    return pulled, [None] * len(given), slopes.sum_to_size(radius.shape).to(radius.dtype), None


project_tree.register_autograd(_back_tree, setup_context=_keep_tree)
_pull_tree.register_autograd(refuse_twice)


def _refuse_vmap(*_: Any) -> Any:
    raise TypeError(
        "torch.vmap goes through chains of l1, l2 and linf over one tensor; of this tree, project "
        "one after the other, or give the axes of its levels: what no level takes is a batch"
    )


project_tree.register_vmap(_refuse_vmap)
_pull_tree.register_vmap(_refuse_vmap)
