"""Whether nothing but autograd looks at a call: operators, which take time, are then left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Radius: TypeAlias = "float | Tensor"

_PLAIN = Tensor, torch.nn.Parameter
_inside: Any = torch._C._functorch
_modes: Any = torch._C


def is_eager(*operands: Radius) -> bool:
    """Whether no tracer, transform, mode or kind of tensors of its own sees these operands."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if _inside.peek_interpreter_stack() is not None or _modes._len_torch_dispatch_stack():
        return False
    return all(type(operand) in _PLAIN for operand in operands if isinstance(operand, Tensor))


def is_watched(*gradients: Tensor | None) -> bool:
    """Whether gradients on their way back are looked at: to be taken again, or mapped over."""
    return torch.is_grad_enabled() or not is_eager(*(g for g in gradients if g is not None))


def as_tensor(radius: Radius) -> Tensor:
    return radius if isinstance(radius, Tensor) else torch.tensor(radius, dtype=torch.float64)


def number_of(radius: Radius) -> Any:
    """A radius as NumPy has it."""
    return radius.detach().double().numpy() if isinstance(radius, Tensor) else radius


def as_it_lay(y: Tensor, strides: Sequence[int]) -> Tensor:
    """A saved tensor in its old layout, which tapes have: hooks may save it in another one."""
    if y.stride() == strides:
        return y
    return torch.empty_strided(y.shape, strides, dtype=y.dtype).copy_(y)


def slopes_for(radius: Radius, slopes: Any) -> Tensor | None:
    """The gradients of radii, as the tensor `radius` has to have them; None for a number."""
    if not isinstance(radius, Tensor):
        return None
    found = slopes if isinstance(slopes, Tensor) else torch.from_numpy(np.array(slopes, np.float64))
    return found.sum_to_size(radius.shape).to(radius.dtype)
