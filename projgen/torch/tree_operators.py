"""Whole trees as functions of tensors with gradients: operators, and what autograd alone sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projgen import calls, pullback
from projgen.calls import Taped
from projgen.cuda.pull import refuse
from projgen.projection import Projection
from projgen.structure import Key, flat
from projgen.torch.eager import are_batched, is_eager, is_watched
from projgen.torch.recipes import filled, operator, read_recipe, refuse_twice
from projgen.torch.tensors import (
    Radius,
    array_of,
    as_it_lay,
    as_tensor,
    number_of,
    slopes_for,
    strides_of,
    tensor_of,
)


def _bound(
    ys: Sequence[Tensor], given: Sequence[Tensor], radius: Radius, recipe: str
) -> tuple[Projection, Any, Any, dict[str, Any]]:
    projection, told = read_recipe(recipe)
    if any(tensor.is_cuda for tensor in ys):
        refuse(projection)
    y = filled(told["outline"], [array_of(tensor) for tensor in ys])
    named = {name: array_of(t) for name, t in zip(told["names"], given, strict=True)}
    at = None if projection.tree.root.k is not None else number_of(radius)
    return projection, y, at, named


def project_leaves(
    ys: list[Tensor], given: list[Tensor], radius: Radius, recipe: str
) -> Sequence[Tensor]:
    """The projection of the leaves of a structure, with gradients."""
    if is_eager(*ys, *given, radius):
        found: Sequence[Tensor] = _Eager.apply(len(ys), recipe, radius, *ys, *given)
        return found
    made: list[Tensor] = project_tree(ys, given, as_tensor(radius), recipe)
    return made


class _Eager(torch.autograd.Function):
    """The operator where nothing but autograd looks at it: it keeps the tape of the projection."""

    @staticmethod
    def forward(
        ctx: Any, count: int, recipe: str, radius: Radius, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ys, given = tensors[:count], tensors[count:]
        projection, y, at, named = _bound(ys, given, radius, recipe)
        _, taped = calls.taped(projection, y, at, named)
        ctx.keys = [key for key, _ in flat(y)]
        pairs = list(zip(ctx.keys, ys, strict=True))
        results = [
            tensor_of(taped.results[key]) if key in taped.results else own.clone()
            for key, own in pairs  # others pass unmatched
        ]
        learned = (radius,) if isinstance(radius, Tensor) else ()
        ctx.save_for_backward(*ys, *results, *given, *learned)
        # The saved tensors alone hold the arrays: so hooks and checkpoints may free these.
        lay = {key: strides_of(array) for key, array in taped.arrays.items()}
        ctx.taped, ctx.strides = replace(taped, arrays={}, results={}), lay
        ctx.recipe, ctx.radius = recipe, None if learned else radius
        ctx.mark_non_differentiable(*(x for x in results if not x.is_floating_point()))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = [*ctx.saved_tensors], len(ctx.keys)
        radius = saved.pop() if ctx.radius is None else ctx.radius
        ys, xs, given = saved[:count], saved[count : 2 * count], saved[2 * count :]
        if are_batched(*gs):
            _refuse_vmap()
        if is_watched(*gs):
            pulled, slopes = _pull_tree([*gs], ys, given, as_tensor(radius), ctx.recipe)
        else:
            projection, _ = read_recipe(ctx.recipe)
            arrays, results = (_arrays(ctx, tensors) for tensors in (ys, xs))
            taped = replace(ctx.taped, arrays=arrays, results=results)
            pulled, slopes = _pulled(projection, taped, ctx.keys, ys, gs)
        own_slopes = slopes_for(radius, slopes) if ctx.needs_input_grad[2] else None
        return None, None, own_slopes, *pulled, *(None for _ in given)


def _arrays(ctx: Any, saved: Sequence[Tensor]) -> dict[Key, Any]:
    """Saved tensors as the tape knows them."""
    own = dict(zip(ctx.keys, saved, strict=True))
    lying = {key: array_of(as_it_lay(own[key], lay)) for key, lay in ctx.strides.items()}
    return {key: np.require(array, requirements="A") for key, array in lying.items()}


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
    results, slopes = _pulled(projection, taped, [key for key, _ in flat(y)], ys, gs)
    return results, torch.from_numpy(np.array(slopes, np.float64))


def _pulled(
    projection: Projection,
    taped: Taped,
    keys: Sequence[Key],
    ys: Sequence[Tensor],
    gs: Sequence[Tensor],
) -> tuple[list[Tensor], Any]:
    """The gradients of the leaves and of the radii."""
    known = taped.arrays.keys()
    found = {key: array_of(g.resolve_neg()) for key, g in zip(keys, gs, strict=True)}
    gradients = {key: g for key, g in found.items() if key in known}
    pulled, slopes = pullback.pull_back_tree(projection, taped, gradients)
    results = []
    for key, own, g in zip(keys, ys, gs, strict=True):
        result = torch.empty_like(own)
        if key in pulled:
            np.copyto(array_of(result), pulled[key])
        else:
            result.copy_(g)  # it passed unmatched
        results.append(result)
    return results, slopes


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
