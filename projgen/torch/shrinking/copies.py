"""Models copied, made plain, and put back."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from projgen.torch.shrinking.taint import Inputs, run


def unwrapped(model: nn.Module) -> nn.Module:
    """`model` without what `torch.compile` put around it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("a TorchScript module cannot change; shrink the module it was made from")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise TypeError(f"the model is wrapped in {type(model).__name__}; shrink model.module")
    return model


def call(example_inputs: Any) -> Inputs:
    """Arguments of a call, whose tensors are copies."""
    example = pytree.tree_map(_cloned, example_inputs)
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def copied(model: nn.Module, example: Inputs) -> nn.Module:
    """A copy of `model` whose parts are not compiled, with plain weights."""
    memo: dict[int, Any] = {}
    modes = {module: module.training for module in model.modules()}
    try:
        small = _deepcopy(model, memo)
    except RuntimeError:  # masks leave weights in a graph, until the next call
        try:
            run(model.eval(), example)
        finally:
            for module, mode in modes.items():
                module.training = mode
        small = _deepcopy(model, memo)
    _make_plain(small)
    return small


def _make_plain(model: nn.Module) -> None:
    """Put weights in the place of parametrizations and masks."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            mode, kind = module.training, type(module)
            # The class, which copies share, is about to change.
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            module.eval()  # some parametrizations learn when they are read in training
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            module.train(mode)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)


@contextmanager
def working(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation, and its parameters in the graph; afterwards as they were."""
    training = [(module, module.training) for module in model.modules()]
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    yield
    for module, mode in training:
        module.training = mode
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]  # a bias may be new: it trains if the layer's weight does
        parameter.requires_grad_(wanted.get(name, wanted.get(f"{layer}.weight", True)))


def memory(model: nn.Module) -> Callable[[], None]:
    """What puts `model`'s layers back to how they are now."""
    stores = ("_parameters", "_buffers")
    kept = [(m, dict(vars(m)), [dict(vars(m)[s]) for s in stores]) for m in model.modules()]

    def undo() -> None:
        for module, attributes, contents in kept:
            vars(module).clear()
            vars(module).update(attributes)
            for store, content in zip(stores, contents, strict=True):
                vars(module)[store].clear()
                vars(module)[store].update(content)

    return undo


def another(example: Inputs) -> Inputs:
    """Inputs like `example`, with noise on numbers and everything else shuffled."""
    random = torch.Generator().manual_seed(0)

    def change(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=random).to(x)
            return x + noise * (x.std() if x.numel() > 1 else 1)
        order = torch.randperm(x.numel(), generator=random).to(x.device)
        return x.flatten()[order].view(x.shape)

    return pytree.tree_map(change, example)  # type: ignore[no-any-return]


def difference(result: Any, expected: Any) -> float:
    """How far outputs are apart, in units of the largest; infinite if they are not comparable."""
    (ours, structure), (theirs, wanted) = pytree.tree_flatten(result), pytree.tree_flatten(expected)
    if structure != wanted:
        return math.inf
    return max((_apart(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def rounding(expected: Any) -> float:
    """How far rounding may bring outputs apart, in units of the largest."""
    kinds = {x.dtype for x in pytree.tree_leaves(expected) if isinstance(x, Tensor)}
    steps = [torch.finfo(kind).eps for kind in kinds if kind.is_floating_point]
    coarsest = max(steps, default=0.0)
    return coarsest * (8 if coarsest > 1e-4 else 500)


def _apart(a: Any, b: Any) -> float:
    if not isinstance(b, Tensor):
        return 0.0
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    same = (a == b) | ((a != a) & (b != b))
    if same.all():
        return 0.0
    if not b.is_floating_point():
        return math.inf
    largest = b.abs().where(b.isfinite(), 0.0).max().double()
    return float((a - b).abs().masked_fill(same, 0.0).max().double() / largest)


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    memo.clear()
    for module in model.modules():
        if hasattr(module, "_orig_mod"):
            memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
    return copy.deepcopy(model, memo)


def _cloned(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x
