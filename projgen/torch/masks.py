"""Zeros that stay: which entries of parameters are held at zero, in the optimiser's state too."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from projgen.errors import quote
from projgen.torch.names import Names
from projgen.torch.shards import is_sharded, local

PIECE = 1 << 16  # values whose signs stay in a core's cache
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a value
MOMENTA = ("momentum_buffer", "exp_avg")  # what PyTorch's optimisers call them


class Masks:
    """``frozen`` has, for each parameter that is held, a bool tensor: true where it stays zero."""

    def __init__(self, names: Names, optimizer: torch.optim.Optimizer) -> None:
        self.frozen: dict[str, Tensor] = {}
        self._names = names
        self._optimizer = optimizer

    def freeze(self, names: Iterable[str]) -> None:
        """Hold every entry of these parameters that is zero now.

        Entries, whatever the spec: a group that vanished is all its entries, and balls of l1 make
        single ones vanish. What was held before is zero, so it goes on being held.
        """
        self.frozen |= {name: self._names.tensor(name).detach() == 0 for name in names}

    def hold(self) -> None:
        """Zero what is frozen, in the parameters and in the optimiser's state."""
        self.hold_parameters()
        self.hold_state()

    def hold_parameters(self) -> None:
        """Zero what is frozen in the parameters."""
        for name in self.frozen:
            tensor = self._names.tensor(name)
            _zero(tensor, self._frozen(name, tensor))

    def hold_state(self) -> None:
        """Zero what is frozen in all that the optimiser keeps in a parameter's shape: momenta, and
        means of squares. Nothing is left that would move it once the mask is gone."""
        for name in self.frozen:
            tensor = self._names.tensor(name)
            for value in self._optimizer.state.get(tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == tensor.shape:
                    _zero(value, self._frozen(name, tensor))

    def calm(self, names: Iterable[str]) -> None:
        """Zero the momenta of entries that are zero: no earlier gradient moves them then. Means of
        squares stay, or the first gradient that does would count for too much."""
        for name in names:
            tensor = self._names.tensor(name)
            state = self._optimizer.state.get(tensor, {})
            for momentum in (state.get(key) for key in MOMENTA):
                if isinstance(momentum, Tensor) and momentum.shape == tensor.shape:
                    _clear(local(tensor), local(momentum))

    def _frozen(self, name: str, tensor: Tensor) -> Tensor:
        frozen = self.frozen[name]
        if frozen.shape != tensor.shape:
            raise RuntimeError(
                f"{quote(name, 80)} has shape {tuple(tensor.shape)} now, and its zeros that stay "
                f"{tuple(frozen.shape)}: make the optimiser and its constraints after the model is "
                "changed"
            )
        if is_sharded(frozen) != is_sharded(tensor):
            now, before = ("in shards", "whole") if is_sharded(tensor) else ("whole", "in shards")
            raise RuntimeError(
                f"{quote(name, 80)} is {now}, and its zeros that stay are {before}: call "
                "model.reshard() if FSDP has gathered it; or make the optimiser and its constraints"
                " after the model is sharded"
            )
        if frozen.device != tensor.device:  # the model has moved
            frozen = self.frozen[name] = frozen.to(tensor.device)
        return frozen


def _zero(values: Tensor, frozen: Tensor) -> None:
    """Zero `values` where `frozen` is true, whatever they are: NaN as well."""
    if values.is_cpu and values.is_floating_point() and not is_sharded(values):
        # As integers NaN times 0 is 0; and it is some four times as quick as masked_fill_.
        values.view(BITS[values.element_size()]).mul_(~frozen)
    else:
        values.masked_fill_(frozen, 0)


def _clear(values: Tensor, momentum: Tensor) -> None:
    """Zero `momentum` where `values` are zero."""
    parts = [(values, momentum)]
    if values.is_cpu and values.is_contiguous() and momentum.is_contiguous():
        pieces = (each.view(-1).split(PIECE) for each in (values, momentum))
        parts = list(zip(*pieces, strict=True))
    for part, own in parts:
        own.mul_(part.sign().abs_())  # much quicker than a mask of bools


__all__ = ["Masks"]
