"""Tensors as the kernels and NumPy have them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from projgen.arrays import view

Radius: TypeAlias = "float | Tensor"

_ALIKE = torch.float32, torch.float64  # as NumPy has them


def array_of(tensor: Tensor) -> Any:
    """The memory of a tensor as a NumPy array. Of dtypes that have no projection too: those may
    only pass."""
    if tensor.dtype in _ALIKE and tensor.device.type == "cpu" and not tensor.is_neg():
        return tensor.detach().numpy()
    if not tensor.is_floating_point():
        return tensor.detach().numpy()
    array, _ = view(tensor.detach())
    return array


def tensor_of(array: Any) -> Tensor:
    """The inverse of `array_of`, of what has a projection."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def strides_of(array: Any) -> tuple[int, ...]:
    """As tensors have them, in elements."""
    return tuple(stride // array.itemsize for stride in array.strides)


def as_it_lay(y: Tensor, strides: Sequence[int]) -> Tensor:
    """A saved tensor in the layout that its tape has: hooks may save it in another one."""
    if y.stride() == tuple(strides):
        return y
    return torch.empty_strided(y.shape, strides, dtype=y.dtype, device=y.device).copy_(y)


def as_tensor(radius: Radius) -> Tensor:
    return radius if isinstance(radius, Tensor) else torch.tensor(radius, dtype=torch.float64)


def number_of(radius: Radius) -> Any:
    """A radius as NumPy has it."""
    return radius.detach().double().numpy() if isinstance(radius, Tensor) else radius


def slopes_for(radius: Radius, slopes: Any) -> Tensor | None:
    """The gradients of radii, as the tensor `radius` has to have them; None for a number."""
    if not isinstance(radius, Tensor):
        return None
    found = slopes if isinstance(slopes, Tensor) else torch.from_numpy(np.array(slopes, np.float64))
    return found.sum_to_size(radius.shape).to(radius)
