"""Projections as differentiable functions of PyTorch.

They are custom operators, so autograd, torch.compile and vmap know them. The forward operator keeps
a *tape* for the way back: see `projgen.cpu.pull`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.utils._pytree
from torch import Tensor

import projgen
from projgen import calls, interpret_pullbacks, pullback
from projgen.arrays import check_dtype, view
from projgen.bind import Binding, bind
from projgen.cpu import pull
from projgen.dtypes import put
from projgen.operands import check_radius
from projgen.projection import Projection
from projgen.structure import entries, flat, rebuilt
from projgen.tree import Node, NormTree

Radius = float | Tensor

_ONCE = "projections have first derivatives here, and no second ones"

torch.utils._pytree.register_constant(Projection)  # to torch.compile


def project(
    y: Any, spec: str | Projection, radius: Radius | None = None, **arrays: Any
) -> Any:
    """The projection of `y`, differentiable in `y` and in `radius`.

    Args:
        y: a tensor of float32, float64, float16 or bfloat16 on the CPU; for a tree with branches a
            structure of tensors.
        spec: a spec, or what `projgen.build` makes of one.
        radius: a number, or a tensor that broadcasts over the batch axes.
        **arrays: the weights and labels that the spec names. They get no gradients.

    Returns:
        A new tensor, or a structure of them like `y`.

    Raises:
        SpecError, TypeError, ValueError: as a call of the projection does. TypeError for tensors
            on a GPU.
    """
    recipe, is_plain, counts, name = _told(spec)
    if counts:
        at = torch.zeros((), dtype=torch.float64)
        if radius is not None:
            raise TypeError(f"{name} says how many groups are kept: it takes no radius")
    elif radius is None:
        raise TypeError("a radius is missing: the call is project(y, spec, radius)")
    else:
        at = radius if isinstance(radius, Tensor) else torch.tensor(radius, dtype=torch.float64)
    if is_plain and not arrays and isinstance(y, Tensor):
        one: Any = _Function.apply if _is_transformed(y, at) else _project
        x: Tensor = one(y, at, recipe)[0]
        return x
    leaves: list[Tensor] = []
    outline = _outline(y, leaves)
    given = {name: torch.as_tensor(array) for name, array in arrays.items()}
    results = _project_tree(leaves, [*given.values()], at, _joined(recipe, outline, [*given]))
    return rebuilt(y, {key: x for (key, _), x in zip(flat(y), results, strict=True)})


class Projected(torch.nn.Module):
    """A parametrization: a parameter that is the projection of what is trained.

    For `torch.nn.utils.parametrize.register_parametrization`; or see `parametrize`. ``radius`` may
    be set at any time.
    """

    def __init__(self, spec: str | Projection, radius: Radius) -> None:
        super().__init__()
        self.projection = spec if isinstance(spec, Projection) else projgen.build(spec)
        self.radius = radius

    def forward(self, y: Tensor) -> Tensor:
        x: Tensor = project(y, self.projection, self.radius)
        return x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x

    def extra_repr(self) -> str:
        radius = self.radius.tolist() if isinstance(self.radius, Tensor) else self.radius
        return f"{self.projection.spec!r}, radius={radius}"


def parametrize(
    module: torch.nn.Module, name: str, spec: str | Projection, radius: Radius
) -> Projected:
    """Make ``module.name`` the projection of a parameter that is trained in its place.

    ``torch.nn.utils.parametrize.remove_parametrizations(module, name)`` makes it a parameter again,
    with the projected values.
    """
    own = Projected(spec, radius)
    torch.nn.utils.parametrize.register_parametrization(module, name, own)
    return own


# What the operators are told of a projection: a string, since they take tensors and plain values.


@torch.compiler.assume_constant_result
def _told(spec: str | Projection) -> tuple[str, bool, bool, str]:
    """A recipe; whether it is for one array, whether the spec has the radius; and the spec."""
    projection = spec if isinstance(spec, Projection) else projgen.build(spec)
    counts = projection.tree.root.k is not None
    return _recipe(projection), projection._is_plain, counts, projection.spec


def _recipe(projection: Projection) -> str:
    own = {
        "spec": projection.spec,
        "backend": projection._backend,
        "threads": projection._threads,
        "check_finite": projection._check_finite,
        "unmatched": projection._unmatched,
        "exact": projection._exact,
    }
    return json.dumps(own)


@torch.compiler.assume_constant_result
def _joined(recipe: str, outline: Any, names: list[str]) -> str:
    """The recipe with the structure of the tensors, and the names of others."""
    return json.dumps({**json.loads(recipe), "outline": outline, "names": names})


@lru_cache(maxsize=1024)
def _read(recipe: str) -> tuple[Projection, Mapping[str, Any]]:
    told = json.loads(recipe)
    own = {name: told.pop(name) for name in ("spec", "backend", "threads", "check_finite")}
    own |= {name: told.pop(name) for name in ("unmatched", "exact")}
    return projgen.build(**own), told


def _array(tensor: Tensor) -> Any:
    array, _ = view(tensor.detach())
    return array


# One array: chains have kernels for the way back.


@torch.library.custom_op("projgen::project", mutates_args=())
def _project(y: Tensor, radius: Tensor, recipe: str) -> tuple[Tensor, Tensor]:
    projection, _ = _read(recipe)
    if y.is_cuda:
        raise TypeError("gradients are taken on the CPU: use y.cpu(), or p(y, radius) without them")
    dense = y
    x = torch.empty_like(y)
    if x.stride() != y.stride() or y.is_neg():
        dense = torch.empty_like(y).copy_(y)
    source = _array(dense)
    check_dtype(source)
    binding = projection._bind(source)
    radii = check_radius(radius.detach().numpy(), binding, source.shape)
    found, tape = pullback.project(projection, binding, source, radii)
    np.copyto(_array(x), found)
    kept = torch.zeros(_tape_size(projection, binding, y.shape), dtype=torch.float64)
    if tape is not None:
        kept[: tape.size] = torch.from_numpy(tape)
    elif kept.numel():
        kept[0] = torch.nan  # there is none: the reference goes back
    return x, kept


@_project.register_fake
def _(y: Tensor, radius: Tensor, recipe: str) -> tuple[Tensor, Tensor]:
    projection, _ = _read(recipe)
    binding = bind(projection._walked, y.ndim)
    size = _tape_size(projection, binding, y.shape)
    return torch.empty_like(y), torch.empty(size, dtype=torch.float64)


def _tape_size(projection: Projection, binding: Binding, shape: Sequence[Any]) -> Any:
    """How many values the tape has room for: that of the tree as it is, before levels merge."""
    if projection.is_joint or not pull.has_kernel(binding):
        return 0
    entries = _product(shape[axis] for axis in binding.batch)
    size, values = 2 * entries, entries
    for level in binding.levels[:-1]:
        values = values * _product(shape[axis] for axis in level.axes)
        size = size + 2 * values
    return size


def _product(extents: Iterator[Any]) -> Any:
    result = 1
    for extent in extents:
        result = result * extent
    return result


@torch.library.custom_op("projgen::pull", mutates_args=())
def _pull(
    g: Tensor, y: Tensor, x: Tensor, tape: Tensor, radius: Tensor, recipe: str
) -> tuple[Tensor, Tensor]:
    projection, _ = _read(recipe)
    result = torch.empty_like(y)
    if result.stride() != y.stride() or y.is_neg():
        y = torch.empty_like(y).copy_(y)
    source, gradient = _array(y), _array(g.resolve_neg())
    binding = projection._bind(source)
    radii = check_radius(radius.detach().numpy(), binding, source.shape)
    found = tape.numpy() if tape.numel() and not torch.isnan(tape[0]) else None
    if not source.size:
        found = None
    pulled, slopes = pullback.pull_back(
        projection, binding, source, radii, _array(x), found, gradient
    )
    np.copyto(_array(result), pulled)
    return result, torch.from_numpy(np.array(slopes, np.float64))


@_pull.register_fake
def _(
    g: Tensor, y: Tensor, x: Tensor, tape: Tensor, radius: Tensor, recipe: str
) -> tuple[Tensor, Tensor]:
    projection, _ = _read(recipe)
    binding = bind(projection._walked, y.ndim)
    batch = [y.shape[axis] for axis in binding.batch]
    return torch.empty_like(y), torch.empty(batch, dtype=torch.float64)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y, radius, recipe = inputs
    x, tape = output
    ctx.save_for_backward(y, x, tape, radius)
    ctx.recipe = recipe


def _back(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    y, x, tape, radius = ctx.saved_tensors
    one: Any = _PullFunction.apply if _is_transformed(g, y, radius) else _pull
    pulled, slopes = one(g, y, x, tape, radius, ctx.recipe)
    return pulled, slopes.sum_to_size(radius.shape).to(radius.dtype), None


_project.register_autograd(_back, setup_context=_keep)


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

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(_ONCE)


def _is_transformed(*tensors: Tensor) -> bool:
    return not torch.compiler.is_compiling() and any(
        torch._C._functorch.is_gradtrackingtensor(tensor) for tensor in tensors
    )


def _batched(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, tuple[Any, ...]]:
    """vmap: what is mapped over becomes one batch axis more, the first."""
    *tensors, recipe = inputs
    dims = in_dims[: len(tensors)]
    rank = max(t.ndim - (d is not None) for t, d in zip(tensors[:-1], dims, strict=False))
    projection, _ = _read(recipe)
    binding = bind(projection._walked, rank)
    forward = len(tensors) == 2
    moved: list[Tensor] = []
    for i, (tensor, dim) in enumerate(zip(tensors, dims, strict=True)):
        is_radius, is_tape = i == len(tensors) - 1, not forward and i == 3
        if is_tape:
            moved.append(tensor)  # of all together, whatever is mapped over
        elif dim is None and not is_radius:
            moved.append(tensor.expand(info.batch_size, *tensor.shape).contiguous())
        elif dim is None:
            moved.append(tensor)
        else:
            first = tensor.movedim(dim, 0)
            if is_radius:  # its axes stand at the end of the batch's
                lacking = len(binding.batch) - (first.ndim - 1)
                first = first.reshape(first.shape[0], *(1,) * lacking, *first.shape[1:])
            moved.append(first)
    above = _recipe(_lifted(projection, binding))
    if forward:
        return _project(*moved, above), (0, None)
    return _pull(*moved, above), (0, 0)


def _lifted(projection: Projection, binding: Binding) -> Projection:
    """The projection for arrays with one axis more at the front, a batch axis."""
    node: Node | None = None
    for own, level in reversed(list(zip(projection._walked.levels, binding.levels, strict=True))):
        axes = tuple(axis + 1 for axis in level.axes)
        node = Node(own.norm, axes, (node,) if node else ())
    assert node is not None
    return Projection(
        NormTree(node),
        projection._backend,
        projection._threads,
        projection._check_finite,
        projection._unmatched,
        projection._exact and projection.is_joint,
    )


_project.register_vmap(_batched)
_pull.register_vmap(_batched)


# Whole trees: kernels forward, the reference back.


def _outline(y: Any, leaves: list[Tensor]) -> Any:
    """The structure of `y` in plain values, with numbers for its tensors, which go to `leaves`."""
    if isinstance(y, Tensor):
        leaves.append(y)
        return len(leaves) - 1
    found = entries(y)
    if found is None:
        raise TypeError(f"expected tensors, or a structure of them, not a {type(y).__name__}")
    if isinstance(y, Sequence) and not hasattr(y, "_fields"):
        return [_outline(value, leaves) for value in found.values()]
    return {str(name): _outline(value, leaves) for name, value in found.items()}


def _filled(outline: Any, arrays: Sequence[Any]) -> Any:
    if isinstance(outline, int):
        return arrays[outline]
    if isinstance(outline, list):
        return [_filled(part, arrays) for part in outline]
    return {name: _filled(part, arrays) for name, part in outline.items()}


def _bound(
    ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> tuple[Projection, Any, Any, dict[str, Any]]:
    projection, told = _read(recipe)
    y = _filled(told["outline"], [_array(tensor) for tensor in ys])
    named = {name: _array(t) for name, t in zip(told["names"], given, strict=True)}
    at = None if projection.tree.root.k is not None else radius.detach().numpy()
    return projection, y, at, named


@torch.library.custom_op("projgen::project_tree", mutates_args=())
def _project_tree(
    ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> list[Tensor]:
    results = [torch.empty_like(y) for y in ys]
    projection, y, at, named = _bound(ys, given, radius, recipe)
    x = calls.project(projection, y, at, None, named)
    for result, (_, found) in zip(results, flat(x), strict=True):
        np.copyto(_array(result), found)
    return results


@_project_tree.register_fake
def _(ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str) -> list[Tensor]:
    return [torch.empty_like(y) for y in ys]


@torch.library.custom_op("projgen::pull_tree", mutates_args=())
def _pull_tree(
    gs: list[Tensor], ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> tuple[list[Tensor], Tensor]:
    projection, y, at, named = _bound(ys, given, radius, recipe)
    bound = calls.bound(projection, y, at, named)
    keys = [key for key, _ in flat(y)]
    gradients = {key: _array(g.resolve_neg()) for key, g in zip(keys, gs, strict=True)}
    pulled, slopes = interpret_pullbacks.pull_back(
        bound.tree, bound.arrays, bound.radii, gradients, bound.given.arrays, bound.given.labels
    )
    results = []
    for key, own, g in zip(keys, ys, gs, strict=True):
        result = torch.empty_like(own)
        if key in pulled:
            put(_array(result), pulled[key])
        else:
            result.copy_(g)  # it passed unmatched
        results.append(result)
    return results, torch.from_numpy(np.array(slopes, np.float64))


@_pull_tree.register_fake
def _(
    gs: list[Tensor], ys: list[Tensor], given: list[Tensor], radius: Tensor, recipe: str
) -> tuple[list[Tensor], Tensor]:
    return [torch.empty_like(y) for y in ys], torch.empty(radius.shape, dtype=torch.float64)


def _keep_tree(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ys, given, radius, recipe = inputs
    ctx.save_for_backward(*ys, *given, radius)
    ctx.count, ctx.recipe = len(ys), recipe


def _back_tree(ctx: Any, gs: list[Tensor]) -> tuple[list[Tensor], list[None], Tensor, None]:
    *saved, radius = ctx.saved_tensors
    ys, given = saved[: ctx.count], saved[ctx.count :]
    pulled, slopes = _pull_tree(gs, ys, given, radius, ctx.recipe)
    return pulled, [None] * len(given), slopes.sum_to_size(radius.shape).to(radius.dtype), None


_project_tree.register_autograd(_back_tree, setup_context=_keep_tree)
