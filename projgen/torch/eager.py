"""Who looks at a call: where nothing but autograd does, operators, which take time, are left out.

PyTorch tells of its tracers and transforms by private functions. Where a release has not all of
them, every call takes the operators' way, which is right whoever looks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projgen.torch.tensors import Radius

_PLAIN = Tensor, torch.nn.Parameter


def _own(name: str, *, of: Any = torch._C) -> Any:
    return getattr(of, name, None)


_functorch = _own("_functorch")
_transform = _own("peek_interpreter_stack", of=_functorch)
_modes = _own("_len_torch_dispatch_stack")
_is_batched = _own("is_legacy_batchedtensor", of=_functorch)  # by what `is_grads_batched` asks for
_is_wrapped = _own("is_functorch_wrapped_tensor", of=_functorch)
_is_tracking = _own("is_gradtrackingtensor", of=_functorch)
_unwrapped = _own("get_unwrapped", of=_functorch)


def is_eager(*operands: Radius) -> bool:
    """Whether no tracer, transform, mode or kind of tensors of its own sees these operands."""
    if None in (_transform, _modes, _is_batched):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if _transform() is not None or _modes():
        return False
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    return all(type(tensor) in _PLAIN and not _is_batched(tensor) for tensor in tensors)


def is_watched(*gradients: Tensor | None) -> bool:
    """Whether gradients on their way back are looked at: to be taken again, or mapped over."""
    return torch.is_grad_enabled() or not is_eager(*(g for g in gradients if g is not None))


def are_batched(*gradients: Tensor | None) -> bool:
    """Whether autograd maps over gradients: ``is_grads_batched``, ``vectorize`` and their kin."""
    return _is_batched is not None and any(g is not None and _is_batched(g) for g in gradients)


def is_transformed(*tensors: Tensor) -> bool:
    """Whether `torch.func.grad` or its kin look at one of them; PyTorch refuses what is missed."""
    if None in (_is_wrapped, _is_tracking, _unwrapped) or torch.compiler.is_compiling():
        return False
    return any(map(_tracks, tensors))


def _tracks(tensor: Tensor) -> bool:
    while _is_wrapped(tensor):
        if _is_tracking(tensor):
            return True
        tensor = _unwrapped(tensor)
    return False
