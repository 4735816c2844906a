"""Which parameters of a model are meant: by their names, their modules' names, or patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from projgen.errors import quote

COMPILED = "_orig_mod"  # what torch.compile puts into the names of a model's parameters
_TRAINED = re.compile(r"\bparametrizations\.(\w+)\.original\d*$")


class Names:
    """The parameters of a model, under every name that they have.

    Names are without what `torch.compile` adds to them. A tied parameter has several names, and
    the first that is asked for stands for it: `taken` knows which parameters are. With `effective`,
    what is trained of a parametrization has the name of what comes of it.
    """

    def __init__(self, model: torch.nn.Module, *, effective: bool = False) -> None:
        self._paths: dict[str, str] = {}
        for path, _ in model.named_parameters(remove_duplicate=False):
            name = plain_name(path)
            self._paths.setdefault(_TRAINED.sub(r"\1", name) if effective else name, path)
        modules = model.named_modules(remove_duplicate=False)
        self._modules = dict.fromkeys(plain_name(path) for path, _ in modules)
        self._model = model

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def tensor(self, name: str) -> Tensor:
        """The parameter that the model has under this name now.

        Looked up each time: moving a model, or loading one, may put other tensors in their place.
        """
        *path, own = self._paths[name].split(".")
        module: Any = self._model
        try:
            for part in path:
                module = module._modules[part]
            tensor: Tensor = module._parameters[own]
        except (KeyError, AttributeError):
            raise RuntimeError(f"the model has no parameter {quote(name, 80)} any more") from None
        return tensor

    def find(self, key: str) -> list[str]:
        """The parameters that `key` means: a parameter's name, a module's for its ``weight``, or a
        pattern, as a shell's, in which ``*`` spans dots as well. A pattern of parameters' names, or
        if it matches none, of modules'.

        A ValueError that suggests others if there are none.
        """
        name = plain_name(key)
        if name in self._paths:
            return [name]
        if name in self._modules:
            own = f"{name}.weight" if name else "weight"
            if own in self._paths:
                return [own]
            raise ValueError(self._has_no_weight(name))
        matches = self._matches(name)
        if not matches:
            weights = (f"{module}.weight" for module in self._modules if fnmatchcase(module, name))
            matches = [weight for weight in weights if weight in self]
        if not matches:
            raise ValueError(f"no parameter or module is called {quote(key, 80)}"
                             f"{self._suggestion(name)}")  # fmt: skip
        return matches

    def weights(self, key: str) -> str | None:
        """A pattern of those weights alone that the pattern `key` matches; None if it has none."""
        patterns = (f"{plain_name(key)}{end}" for end in (".weight", "weight"))
        return next((pattern for pattern in patterns if self._matches(pattern)), None)

    def of_more_axes(self, names: Iterable[str], name: str) -> list[str]:
        """Those of `names` whose parameters have more axes than that of `name`."""
        ranks = {each: self.tensor(each).ndim for each in {*names, name} if not self._is_lazy(each)}
        return [each for each in names if ranks.get(each, 0) > ranks.get(name, math.inf)]

    def _is_lazy(self, name: str) -> bool:
        return bool(torch.nn.parameter.is_lazy(self.tensor(name)))

    def _matches(self, pattern: str) -> list[str]:
        return [name for name in self if fnmatchcase(name, pattern)]

    def unique(self, names: Iterable[str]) -> list[str]:
        """`names` without those whose parameters came under another name before."""
        first: dict[int, str] = {}
        for name in names:
            first.setdefault(id(self.tensor(name)), name)
        return list(first.values())

    def _has_no_weight(self, name: str) -> str:
        inside = [other for other in self if other.startswith(f"{name}.")]
        text = f"the module {quote(name, 80)} has no parameter 'weight'"
        if not inside:
            return f"{text}, and no other"
        return f"{text}; inside it are {listed(inside)}: name one, or write a pattern"

    def _suggestion(self, name: str) -> str:
        known = [*self, *(module for module in self._modules if module)]
        close = get_close_matches(name, known, n=3, cutoff=0.5)
        if not close and not known:
            return ": the model has no parameters"
        return f"; is it {listed(close)}?" if close else f"; there are {listed(list(self))}"


def require(given: object, kind: type, rule: str, hint: str = "") -> None:
    """A TypeError unless `given` is of this kind: the `rule`, what was given, and the `hint`."""
    if not isinstance(given, kind):
        raise TypeError("; ".join(filter(None, [f"{rule}, not {type(given).__name__}", hint])))


def require_both(optimizer: object, model: object, call: str) -> None:
    """A TypeError unless they are what they should be, for ``call(optimizer, model, …)``."""
    call = f"{call}(optimizer, model, …)"
    require(optimizer, torch.optim.Optimizer, f"{call}: the first must be a torch.optim.Optimizer")
    require(model, torch.nn.Module, f"{call}: the second must be a torch.nn.Module")


def plain_name(path: str) -> str:
    """The name that a parameter has in the model that was compiled."""
    return ".".join(part for part in path.split(".") if part != COMPILED)


def members(optimizer: torch.optim.Optimizer) -> set[int]:
    """The ``id`` of each parameter that the optimiser steps."""
    return {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}


def like_model(model: torch.nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict of the model, taken before or after `torch.compile`, with its names now."""
    names = {plain_name(path): path for path in model.state_dict()}
    return {names.get(plain_name(path), path): value for path, value in state.items()}


def listed(names: list[str], most: int = 5) -> str:
    """``'a', 'b' and 3 more``."""
    shown = ", ".join(quote(name, 80) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


__all__ = ["Names", "like_model", "listed", "members", "plain_name", "require", "require_both"]
