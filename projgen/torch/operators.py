"""Operators that project one array, and take gradients back: kernels do both for chains.

The forward operator keeps a *tape* for the way back: see `projgen.cpu.pull`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projgen import pullback
from projgen.arrays import TYPES
from projgen.bind import Binding, bind
from projgen.cpu import pull
from projgen.cpu.tape import TapeLayout
from projgen.operands import check_radius
from projgen.projection import Projection
from projgen.torch import device
from projgen.torch.eager import is_eager, is_transformed, is_watched
from projgen.torch.recipes import operator, read_recipe, recipe_of, refuse_twice
from projgen.torch.tensors import Radius, array_of, as_it_lay, as_tensor, number_of, slopes_for
from projgen.tree import Node, NormTree


def project_array(y: Tensor, radius: Radius, recipe: str) -> Tensor:
    """The projection of `y`, with gradients."""
    if is_eager(y, radius):
        x: Tensor = _Eager.apply(y, radius, recipe)
        return x
    at = as_tensor(radius)
    one: Any = _Function.apply if is_transformed(y, at) else _project
    made: Tensor = one(y, at, recipe)[0]
    return made


def _projected(y: Tensor, radius: Radius, recipe: str) -> tuple[Tensor, Any]:
    """The projection, and the tape: None where the reference takes gradients back."""
    projection, _ = read_recipe(recipe)
    if projection._gpu(y):
        return device.projected(projection, y, radius)
    dense = y
    x = torch.empty_like(y)
    if x.stride() != y.stride() or y.is_neg():
        dense = torch.empty_like(y).copy_(y)
    source = array_of(dense)
    if not y.is_floating_point():
        raise TypeError(f"expected {TYPES}, got {y.dtype}: use y.float()")
    binding = projection._bind(source)
    radii = check_radius(number_of(radius), binding, source.shape)
    return x, pullback.project(projection, binding, source, array_of(x), radii)


@operator("project")
def _project(y: Tensor, radius: Tensor, recipe: str) -> tuple[Tensor, Tensor]:
    x, tape = _projected(y, radius, recipe)
    return x, _kept(y, recipe, tape)


def _kept(y: Tensor, recipe: str, tape: Any) -> Tensor:
    """The tape as a tensor of a size that the shape tells."""
    projection, _ = read_recipe(recipe)
    binding = bind(projection._walked, y.ndim)
    if y.is_cuda:
        return device.kept(y, tape, _tape_size(projection, binding, y))
    kept = torch.zeros(_tape_size(projection, binding, y), dtype=torch.float64)
    if tape is not None:
        kept[: tape.size] = torch.from_numpy(tape)
    elif kept.numel():
        kept[0] = torch.nan  # there is none: the reference goes back
    return kept


def _fake_project(y: Tensor, radius: Tensor, recipe: str) -> tuple[Tensor, Tensor]:
    projection, _ = read_recipe(recipe)
    binding = bind(projection._walked, y.ndim)
    size = _tape_size(projection, binding, y)
    return torch.empty_like(y), torch.empty(size, dtype=torch.float64, device=y.device)


_project.register_fake(_fake_project)


def _tape_size(projection: Projection, binding: Binding, y: Tensor) -> Any:
    """How many values the tape has room for: that of the tree as it is, before levels merge."""
    shape = y.shape
    if projection.is_joint or not pull.has_kernel(binding):
        return 0
    entries = values = _product(shape[axis] for axis in binding.batch)
    sizes = []
    for level in binding.levels[:-1]:
        values = values * _product(shape[axis] for axis in level.axes)
        sizes.append(values)
    layout = TapeLayout(entries, tuple(sizes))
    return device.room(layout) if y.is_cuda else layout.size


def _product(extents: Iterator[Any]) -> Any:
    result = 1
    for extent in extents:
        result = result * extent
    return result


@operator("pull")
def _pull(
    g: Tensor, y: Tensor, x: Tensor, tape: Tensor, radius: Tensor, recipe: str
) -> tuple[Tensor, Tensor]:
    if y.is_cuda:
        return _pulled(g, y, x, tape, radius, recipe)
    found = tape.numpy() if tape.numel() and not torch.isnan(tape[0]) else None
    result, slopes = _pulled(g, y, x, found, radius, recipe)
    return result, torch.from_numpy(np.array(slopes, np.float64))


def _pulled(
    g: Tensor, y: Tensor, x: Tensor, tape: Any, radius: Radius, recipe: str
) -> tuple[Tensor, Any]:
    """The gradients of y and of the radii, by that of x and what `_projected` left."""
    projection, _ = read_recipe(recipe)
    if y.is_cuda:
        binding = bind(projection._walked, y.ndim)
        return device.pulled(binding, g, y, x, tape, radius)
    result = torch.empty_like(y)
    if result.stride() != y.stride() or y.is_neg():
        y = torch.empty_like(y).copy_(y)
    source, gradient = array_of(y), array_of(g.resolve_neg())
    binding = projection._bind(source)
    radii = check_radius(number_of(radius), binding, source.shape)
    found = tape if source.size else None
    target = array_of(result)
    slopes = pullback.pull_back(
        projection, binding, source, radii, array_of(x), found, gradient, target
    )
    return result, slopes


def _fake_pull(
    g: Tensor, y: Tensor, x: Tensor, tape: Tensor, radius: Tensor, recipe: str
) -> tuple[Tensor, Tensor]:
    projection, _ = read_recipe(recipe)
    binding = bind(projection._walked, y.ndim)
    batch = [y.shape[axis] for axis in binding.batch]
    return torch.empty_like(y), torch.empty(batch, dtype=torch.float64, device=y.device)


_pull.register_fake(_fake_pull)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y, radius, recipe = inputs
    x, tape = output
    ctx.save_for_backward(y, x, tape, radius)
    ctx.recipe, ctx.strides = recipe, y.stride()


def _back(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None]:
    y, x, tape, radius = ctx.saved_tensors
    y = as_it_lay(y, ctx.strides)
    one: Any = _PullFunction.apply if is_transformed(g, y, radius) else _pull
    pulled, slopes = one(g, y, x, tape, radius, ctx.recipe)
    return pulled, slopes_for(radius, slopes) if ctx.needs_input_grad[1] else None, None


_project.register_autograd(_back, setup_context=_keep)
_pull.register_autograd(refuse_twice)


class _Eager(torch.autograd.Function):
    """The operator where nothing but autograd looks at it: with less on the way."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, radius: Radius, recipe: str) -> Tensor:
        x, ctx.tape = _projected(y, radius, recipe)
        learned = (radius,) if isinstance(radius, Tensor) else ()
        ctx.save_for_backward(y, x, *learned)
        ctx.recipe, ctx.strides, ctx.radius = recipe, y.stride(), None if learned else radius
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None]:
        y, x, *learned = ctx.saved_tensors
        y = as_it_lay(y, ctx.strides)
        radius = learned[0] if learned else ctx.radius
        if is_watched(g):
            at = as_tensor(radius)
            pulled, slopes = _pull(g, y, x, _kept(y, ctx.recipe, ctx.tape), at, ctx.recipe)
        else:
            pulled, slopes = _pulled(g, y, x, ctx.tape, radius, ctx.recipe)
        return pulled, slopes_for(radius, slopes) if ctx.needs_input_grad[1] else None, None


class _Function(torch.autograd.Function):
    """The operator where `torch.func.grad` and its kin, which know no gradients of operators, see
    through it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, radius: Tensor, recipe: str) -> tuple[Tensor, Tensor]:
        x, tape = _project(y, radius, recipe)
        return x, tape

    setup_context = staticmethod(_keep)
    backward = staticmethod(_back)


class _PullFunction(torch.autograd.Function):
    """The way back in the same place."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        g: Tensor, y: Tensor, x: Tensor, tape: Tensor, radius: Tensor, recipe: str
    ) -> tuple[Tensor, Tensor]:
        pulled, slopes = _pull(g, y, x, tape, radius, recipe)
        return pulled, slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        pass

    backward = staticmethod(refuse_twice)


def _batched(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, tuple[Any, ...]]:
    """vmap of `_project`: what is mapped over becomes one batch axis more, the first."""
    y, radius, recipe = inputs
    above, batch = _recipe_above(recipe, y.ndim - (in_dims[0] is not None))
    y, radius = _first(info, y, in_dims[0]), _batch_first(radius, in_dims[1], batch)
    return _project(y, radius, above), (0, None)


def _batched_back(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, tuple[Any, ...]]:
    """vmap of `_pull`. The tape is that of all together, if the projection was mapped over."""
    g, y, x, tape, radius, recipe = inputs
    was_mapped = in_dims[2] is not None
    above, batch = _recipe_above(recipe, x.ndim - was_mapped)
    g, y, x = (_first(info, t, dim) for t, dim in zip((g, y, x), in_dims[:3], strict=True))
    radius = _batch_first(radius, in_dims[4], batch)
    if not was_mapped:
        x, tape = _project(y, radius, above)
    return _pull(g, y, x, tape, radius, above), (0, 0)


def _first(info: Any, tensor: Tensor, dim: int | None) -> Tensor:
    """What is mapped over along the first axis."""
    if dim is not None:
        return tensor.movedim(dim, 0)
    return tensor.expand(info.batch_size, *tensor.shape).contiguous()


def _batch_first(radius: Tensor, dim: int | None, batch: int) -> Tensor:
    """The same of radii, whose other axes stand at the end of `batch` axes."""
    if dim is None:
        return radius
    first = radius.movedim(dim, 0)
    return first.reshape(first.shape[0], *(1,) * (batch - first.ndim + 1), *first.shape[1:])


def _recipe_above(recipe: str, rank: int) -> tuple[str, int]:
    """The recipe for one batch axis more, and how many there are without it."""
    projection, _ = read_recipe(recipe)
    binding = bind(projection._walked, rank)
    return recipe_of(_lifted(projection, binding)), len(binding.batch)


def _lifted(projection: Projection, binding: Binding) -> Projection:
    """The projection for arrays with one axis more at the front, a batch axis."""
    node: Node | None = None
    for own, level in reversed(list(zip(projection._walked.levels, binding.levels, strict=True))):
        axes = tuple(axis + 1 for axis in level.axes)
        node = Node(own.norm, axes, (node,) if node else ())
    assert node is not None
    return Projection(NormTree(node), *projection._state()[1:])


_project.register_vmap(_batched)
_pull.register_vmap(_batched_back)
