"""What depends on what in a model, found by running it on NaN.

NaN survives arithmetic, whatever the other operand is: where a run on NaN gives a number, this
number does not depend on what was NaN, for any input. Two kinds of layers would hide what is
known of their weights, since 0 * NaN is NaN; hooks let a zero weight read nothing. And modes look
after what does lose NaN: comparisons, choices such as argmax, orders, and numbers that Python sees.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

_NAN = float("nan")
_ROUNDING = 8  # units in the last place: vectors and their tails may differ in the last few
_AFFINE = {
    kind.forward
    for kind in (
        nn.Linear,
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
}
# Operators whose numbers have lost NaN: it was put in order, or counted.
_ORDERS = {"sort", "topk", "kthvalue", "mode", "_unique2", "unique_consecutive", "unique_dim",
           "histc"}  # fmt: skip
# Those that take a shape from a tensor, and none of its values.
_SHAPED = {f"{how}_like" for how in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")}
_SHAPED |= {f"new_{how}" for how in ("empty", "empty_strided", "zeros", "ones", "full")}
_SEEN = {Tensor.tolist, Tensor.numpy}  # they call no operator


def run(model: nn.Module, inputs: Inputs) -> Any:
    """What `model` returns, without a graph, and with the same random numbers each time.

    Attention has a shortcut that calls none of its layers; here they are called.
    """
    quick = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            torch.default_generator.manual_seed(0)
            args, kwargs = pytree.tree_map(
                lambda x: x.clone() if isinstance(x, Tensor) else x, inputs
            )
            return model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(quick)


def is_affine(module: nn.Module) -> bool:
    """Whether `module` is a linear map and a bias, both its own parameters."""
    return type(module).forward in _AFFINE and "weight" in module._parameters


def is_plain(module: nn.Module) -> bool:
    """Whether `module` does what PyTorch's layer of its kind does, with parameters of its own."""
    kinds = (nn.Embedding, _BatchNorm, nn.PReLU)
    forwards = {nn.Embedding.forward, _BatchNorm.forward, nn.PReLU.forward}
    forwards.add(nn.SyncBatchNorm.forward)
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return False  # it rescales its rows as it reads them
    return is_affine(module) or (isinstance(module, kinds) and type(module).forward in forwards)


def channel_axis(module: nn.Module, values: Tensor) -> int:
    """The axis of the channels in what a layer reads or writes."""
    rank: int = values.ndim
    if isinstance(module, _ConvNd):
        return rank - 1 - len(module.kernel_size)
    return min(1, rank - 1) if isinstance(module, _BatchNorm) else rank - 1


def constants(
    model: nn.Module, examples: Iterable[Inputs], readers: Iterable[nn.Module]
) -> dict[nn.Module, Tensor]:
    """For each of `readers`: what each channel that it reads always is, or NaN where that varies.

    A constant channel has the same value for every input, and at every position.
    """
    examples = tuple(examples)
    known: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, values: Tensor) -> Tensor:
        channels = values.movedim(channel_axis(module, values), 0).flatten(1)
        low, high = channels.amin(1), channels.amax(1)
        value = torch.where(_close(low, high), low, _NAN)
        before = known.get(module, value)
        known[module] = torch.where(_close(before, value), before, _NAN)
        return values

    mode = _Taint(integers=True)
    with ExitStack() as stack:
        watch(stack, readers, mode.aside(record))
        with ExitStack() as tainted:
            for module in model.modules():
                rule = _rule(module)
                if rule is not None:
                    _after(tainted, module, mode.aside(rule))
            mode.enter(tainted)
            run(model, pytree.tree_map(_all_nan, examples[0]))
        if mode.told:
            return {}
        for example in examples:  # programs may branch on values, and NaN takes other ways
            run(model, example)
    return known


def leaks(
    model: nn.Module,
    example: Inputs,
    expected: Any,
    written: Mapping[nn.Module, Tensor],
    read: Mapping[nn.Module, Tensor],
) -> bool:
    """Whether anything but the channels `read` depends on the channels `written`.

    Both give indices for each layer. `expected` is what the model returns.
    """
    fired: set[nn.Module] = set()

    def taint(module: nn.Module, values: Tensor, output: Tensor) -> Tensor:
        fired.add(module)
        return output.index_fill(channel_axis(module, output), written[module], _NAN)

    def cut(module: nn.Module, values: Tensor) -> Tensor:
        return values.index_fill(channel_axis(module, values), read[module], 0.0)

    mode = _Taint(integers=False)
    with ExitStack() as stack:
        for module in written:
            _after(stack, module, mode.aside(taint))
        watch(stack, read, mode.aside(cut))
        mode.enter(stack)
        result = run(model, example)
    missed = fired != set(written)
    return missed or mode.told or mode.chose(result) or _more_nan(result, expected)


def watch(
    stack: ExitStack,
    modules: Iterable[nn.Module],
    change: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    """While `stack` is open, what `modules` read is what `change` makes of it."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(module, args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: change(module, kwargs[name])}

    for module in modules:
        stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


class _Taint(TorchDispatchMode):
    """Keeps NaN where operators would lose it.

    A pointwise operator gives NaN where any operand is. What cannot be NaN, whole numbers and truth
    values, is *chosen* if it comes of NaN, as the places of maxima are, and what is computed from
    it is NaN. With `integers` that goes for all whole numbers: they may come from the input.
    ``told`` is whether Python saw NaN or what was chosen: what it makes of them nobody knows.
    """

    def __init__(self, *, integers: bool) -> None:
        super().__init__()
        self.integers = integers
        self.told = False
        self.at_rest = False
        self._chosen: dict[int, Tensor] = {}  # by id, and kept: another would take its id

    def enter(self, stack: ExitStack) -> None:
        """Look at all that is computed until `stack` is closed."""
        stack.enter_context(self)
        stack.enter_context(_Seen(self))

    def aside(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """`hook`, whose own arithmetic is left alone."""

        def quiet(*args: Any) -> Any:
            with self._rest():
                return hook(*args)

        return quiet

    def chose(self, values: Any) -> bool:
        """Whether one of `values` is chosen."""
        return any(id(x) in self._chosen for x in pytree.tree_leaves(values))

    def show(self, values: Any) -> None:
        """Python sees `values`."""
        if self.at_rest:
            return
        with self._rest():
            for x in pytree.tree_leaves(values):
                if isinstance(x, Tensor):
                    self.told |= _has_nan(x) if _can_be_nan(x) else self.chose(x)

    @contextmanager
    def _rest(self) -> Iterator[None]:
        before, self.at_rest = self.at_rest, True
        try:
            yield
        finally:
            self.at_rest = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.at_rest:
            return func(*args, **kwargs)
        operands = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        floats = [x for x in operands if _can_be_nan(x)]
        name = func.overloadpacket.__name__
        read = name not in _SHAPED
        chosen = read and self.chose(operands)
        tainted = chosen or (read and any(map(_has_nan, floats)))
        whole = self.integers and len(floats) < len(operands)
        nan = None
        if torch.Tag.pointwise in func.tags and not whole:
            for x in floats:
                nan = x.isnan() if nan is None else nan | x.isnan()
        lost = chosen or (tainted and ("nan" in name or name in _ORDERS))
        if tainted and torch.Tag.dynamic_output_shape in func.tags and name != "index":
            self.told = True  # how many there are is seen by all
        result = func(*args, **kwargs)
        for out in pytree.tree_leaves(result):
            if not isinstance(out, Tensor):
                self.told |= tainted and isinstance(out, (bool, int, float, complex))
            elif not _can_be_nan(out):
                if tainted:
                    self._chosen[id(out)] = out
                    self.told |= func._schema.is_mutable  # it may be a part of another tensor
            elif whole or lost:
                out.fill_(_NAN)
            elif nan is not None:
                out.masked_fill_(nan, _NAN)
        return result


class _Seen(TorchFunctionMode):
    """Tells a `_Taint` what becomes plain Python without an operator."""

    def __init__(self, taint: _Taint) -> None:
        super().__init__()
        self.taint = taint

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _SEEN:
            self.taint.show(args)
        return func(*args, **(kwargs or {}))


def _rule(module: nn.Module) -> Callable[..., Any] | None:
    """A hook after `module` that lets its zero weights read nothing."""
    if is_affine(module):
        return _affine
    if isinstance(module, nn.Embedding) and is_plain(module):
        return _embedding
    if isinstance(module, _BatchNorm) and is_plain(module) and module.affine:
        return _batch_norm
    return None


def _affine(module: Any, values: Tensor, output: Tensor) -> Tensor:
    nan = values.isnan()
    reader = copy.copy(module)
    reader.__dict__["_parameters"] = {
        "weight": nn.Parameter((module.weight != 0).to(values.dtype), requires_grad=False),
        "bias": None,
    }
    reached = reader.forward(nan.to(values.dtype)) > 0.5
    numbers: Tensor = module.forward(values.masked_fill(nan, 0.0))
    return numbers.masked_fill(reached, _NAN)


def _embedding(module: Any, values: Tensor, output: Tensor) -> Tensor:
    low, high = module.weight.amin(0), module.weight.amax(0)
    return torch.where(low == high, low, _NAN).expand_as(output)


def _batch_norm(module: Any, values: Tensor, output: Tensor) -> Tensor:
    shape = [1] * output.ndim
    shape[channel_axis(module, output)] = -1
    weight, bias = module.weight.view(shape), module.bias.view(shape)
    return torch.where(weight == 0, bias, output)


def _after(stack: ExitStack, module: nn.Module, change: Callable[..., Tensor]) -> None:
    """While `stack` is open, `module` writes what `change` makes of what it reads and writes."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return change(module, args[0] if args else next(iter(kwargs.values())), output)

    stack.callback(module.register_forward_hook(hook, prepend=True, with_kwargs=True).remove)


def _all_nan(x: Any) -> Any:
    return torch.full_like(x, _NAN) if isinstance(x, Tensor) and x.is_floating_point() else x


def _can_be_nan(x: Tensor) -> bool:
    return bool(x.is_floating_point() or x.is_complex())


def _has_nan(x: Tensor) -> bool:
    return bool(x.isnan().any())


def _close(a: Tensor, b: Tensor) -> Tensor:
    """Where two values are equal up to rounding; NaN and infinities are not equal to anything."""
    room = _ROUNDING * torch.finfo(a.dtype).eps * a.abs()
    return (a - b).abs() <= room.where(a.isfinite(), _NAN)


def _more_nan(result: Any, expected: Any) -> bool:
    pairs = zip(pytree.tree_leaves(result), pytree.tree_leaves(expected), strict=True)
    return any(
        bool((a.isnan() & ~b.isnan()).any())
        for a, b in pairs
        if isinstance(a, Tensor) and _can_be_nan(a)
    )


def undisturbed(model: nn.Module) -> AbstractContextManager[None]:
    """Random numbers as if `model` had not run."""
    devices = {x.device.index or 0 for x in model.parameters() if x.device.type == "cuda"}
    state: AbstractContextManager[None] = torch.random.fork_rng(sorted(devices))
    return state
