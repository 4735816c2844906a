"""Gradients of tensors on a GPU: see `projgen.cuda.pull`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projgen.bind import Binding
from projgen.cpu.tape import TapeLayout
from projgen.cuda import project as forward
from projgen.cuda import pull
from projgen.cuda.arrays import view
from projgen.cuda.call import on_stream
from projgen.cuda.launches import ALIGNMENT
from projgen.projection import Projection
from projgen.torch.tensors import Radius, number_of


def projected(projection: Projection, y: Tensor, radius: Radius) -> tuple[Tensor, Any]:
    """The projection, and its tape: a CuPy array."""
    found = pull.project(projection, y.detach(), _radius_of(radius))
    x: Tensor = found.result
    return x, found.tape


def _radius_of(radius: Radius) -> Any:
    if isinstance(radius, Tensor) and radius.is_cuda:
        return radius.detach()
    return number_of(radius)


def room(layout: TapeLayout) -> Any:
    """How many float64 a tape has room for, whatever the layout of the arrays."""
    return layout.size + len(layout.parts) * (ALIGNMENT // 8)


def kept(y: Tensor, tape: Any, size: int) -> Tensor:
    """A tape as a tensor of this size."""
    made = torch.empty(size, dtype=torch.float64, device=y.device)
    if tape is not None:
        own = view(made)
        with on_stream(own.device, own.stream):
            own.cupy()[: tape.size] = tape
    return made


def pulled(
    binding: Binding, g: Tensor, y: Tensor, x: Tensor, tape: Any, radius: Radius
) -> tuple[Tensor, Tensor]:
    """The gradients of y and of the radii, by that of x and a tape: CuPy's, or as a tensor."""
    if not y.numel():
        batch = [y.shape[axis] for axis in binding.batch]
        return torch.empty_like(y), torch.zeros(batch, dtype=torch.float64, device=y.device)
    source = view(y.detach())
    radii = forward.chain_radii(_radius_of(radius), binding, source)
    dx = view(g.detach())
    at = tape.data_ptr() if isinstance(tape, Tensor) else tape.data.ptr
    result, slopes = pull.pull_back(binding, source, view(x.detach()), radii, at, dx, tape)
    return result, dx.wrap(slopes)
