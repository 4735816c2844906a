"""The rounds in which a model becomes smaller, until nothing more in it is idle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from projgen.errors import quote
from projgen.torch.shrinking.copies import (
    another,
    call,
    copied,
    difference,
    memory,
    rounding,
    unwrapped,
    working,
)
from projgen.torch.shrinking.coupling import Couplings, Group, Member, Role, remove
from projgen.torch.shrinking.idle import Constants, best, fold, idle, spare_inputs, why
from projgen.torch.shrinking.report import Kept, Layer, Shrunk
from projgen.torch.shrinking.taint import (
    Inputs,
    channel_axis,
    constants,
    leaks,
    run,
    undisturbed,
    watch,
)


def shrink(
    model: nn.Module,
    example_inputs: Any,
    *,
    inputs: bool = False,
    keep: str | Iterable[str] = (),
    tolerance: float | None = None,
) -> tuple[nn.Module, Shrunk]:
    """A smaller model that computes what `model` computes in evaluation, and a report.

    A neuron or channel goes if nothing reads it (all weights on it are zero), or if what is read of
    it is the same for every input (its own weights are zero): the constant is added to the next
    layer's bias. Channels that are coupled, by a residual connection say, go together or not at
    all. What cannot be proved to make no difference stays, and so does one channel of each layer;
    the report says why.

    Args:
        model: A module; it is left as it is. If it is compiled (`torch.compile`), the result is
            not. Parametrizations and masks (`torch.nn.utils.prune`) become plain weights.
        example_inputs: What `model` takes: a tensor, a tuple of positional arguments, or a dict
            of keyword arguments. The batch may be of any size.
        inputs: Also drop features (channels) of the input that nothing reads. The new model takes
            ``x[:, report.inputs]`` (``x[..., report.inputs]`` if a linear layer reads sequences).
            For models of one tensor whose first layers read it directly.
        keep: Names of layers to leave alone, or patterns (``"head.*"``), or one of these.
        tolerance: How much outputs may differ, in units of the largest one; rounding alone makes
            some 1e-6 in float32, and the default is 500 units in the last place (8 for halves).

    Returns:
        The new model, with the modes (training or evaluation) and the ``requires_grad`` of the old
        one, and a `Shrunk`. Parameters are new: make a new optimizer.

    Raises:
        TypeError: `model` is no module, or one that cannot change.
        ValueError: `model` does not run on `example_inputs`, its operations cannot be traced, or
            nothing has a name in `keep`.
        ImportError: Torch-Pruning is not installed.
    """
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be 0 or more")
    model = unwrapped(model)
    with torch.inference_mode(False), undisturbed(model):
        example = call(example_inputs)
        small = copied(model, example)
        with working(small):
            shrinking = _Shrinking(small, example, _patterns(keep, small), tolerance)
            shrinking.shrink()
            features = shrinking.drop_inputs() if inputs else None
            report = shrinking.report(features)
    return small, report


class _Shrinking:
    """A model, as it becomes smaller: round after round until nothing more is idle."""

    def __init__(
        self, model: nn.Module, example: Inputs, keep: tuple[str, ...], tolerance: float | None
    ) -> None:
        self.model = model
        self.keep = keep
        try:
            self.expected = [run(model, example)]
        except Exception as error:
            raise ValueError(
                f"the model does not run on example_inputs ({error}); give what it takes: a "
                "tensor, a tuple of positional arguments, or a dict of keyword arguments"
            ) from error
        self.examples = [example]
        other = another(example)
        try:
            self.expected.append(run(model, other))
            self.examples.append(other)
        except Exception:  # not every input that has these shapes is one for this model
            pass
        self.tolerance = rounding(self.expected) if tolerance is None else tolerance
        self.kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        self.before = _count(model)
        self.left: dict[tuple[str, str], tuple[int, list[int]]] = {}
        self.refused: dict[str, str] = {}
        self.kept: list[Kept] = []
        self.difference = 0.0

    def shrink(self) -> None:
        careful = False
        while True:
            couplings = self._couplings()
            known = self._constants(couplings)
            plan = self._plan(couplings, known)
            if not plan:
                return
            if careful:
                plan = plan[:1]
            problem = self._attempt(plan, known)
            if problem and len(plan) == 1:
                self.refused[plan[0].name] = problem
            careful = careful or problem is not None

    def _couplings(self) -> Couplings:
        try:
            return Couplings(self.model, self.examples[0])
        except Exception as error:
            raise ValueError(
                f"the model's operations cannot be traced ({type(error).__name__}: {error}); "
                "shrink the part of it that can be, as model.part, and put the result in its place"
            ) from error

    def _constants(self, couplings: Couplings) -> dict[nn.Module, Tensor]:
        try:
            return constants(self.model, self.examples, couplings.readers)
        except Exception:  # this model looks at its values, and does not run on NaN
            return {}

    def _plan(self, couplings: Couplings, known: Constants) -> list[Group]:
        """What can go now, each channel of a layer at most once; `kept` is what cannot."""
        plan: list[Group] = []
        busy: set[tuple[Any, bool]] = set()
        self.kept = []
        for group in couplings.groups():
            reason = group.obstacle or self._unwanted(group) or self.refused.get(group.name)
            if not group.having("reads"):
                reason = reason or "the model returns them"
            part = None if reason else best(couplings, group, known)
            if part is not None:
                sides = {(m.module, m.role == "reads") for m in group.members}
                if not sides & busy:
                    plan.append(part)
                    busy |= sides
            elif units := idle(group, known):
                self.kept.append(Kept(group.name, len(units), reason or why(group, known)))
        return plan

    def _unwanted(self, group: Group) -> str | None:
        names = (m.name for m in group.members if any(fnmatchcase(m.name, k) for k in self.keep))
        name = next(names, None)
        return None if name is None else f"{quote(name, 80)} is to be kept"

    def _attempt(
        self,
        groups: Sequence[Group],
        known: Constants,
        start: Inputs | None = None,
        examples: Sequence[Inputs] | None = None,
    ) -> str | None:
        """Take `groups` out of the model; if that makes a difference, undo it and say which.

        Where they are features of the input, `start` has NaN for them, and `examples` is without.
        """
        start = self.examples[0] if start is None else start
        examples = self.examples if examples is None else examples
        members = [member for group in groups for member in group.members]
        written, read = (_indices(members, role) for role in ("writes", "reads"))
        try:
            if leaks(self.model, start, self.expected[0], written, read):
                return "more depends on them than the layers that read them"
        except Exception as error:
            return f"the model does not run on NaN ({error})"
        undo = memory(self.model)
        for module, indices in read.items():
            fold(module, indices, known)
        try:
            for group in groups:
                remove(group)
            problem = self._compare(examples)
        except Exception as error:
            problem = f"the model does not run without them ({error}){_fixed_sizes(error)}"
        if problem is not None:
            undo()
            return problem
        for member in members:
            self._forget(member)
        return None

    def _compare(self, examples: Sequence[Inputs]) -> str | None:
        """What is wrong with the model's outputs, if anything."""
        for example, expected in zip(examples, self.expected, strict=True):
            apart = difference(run(self.model, example), expected)
            if not apart <= self.tolerance:
                return f"outputs would differ by {apart:.1e} of the largest"
            self.difference = max(self.difference, apart)
        return None

    def _forget(self, member: Member) -> None:
        key = member.name, "inputs" if member.role == "reads" else "outputs"
        before, left = self.left.get(key, (member.width, list(range(member.width))))
        gone = set(member.indices)
        self.left[key] = before, [x for i, x in enumerate(left) if i not in gone]

    def drop_inputs(self) -> Tensor | None:
        """Drop what nothing reads of the input; the features that are left."""
        (args, kwargs) = self.examples[0]
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise ValueError("inputs=True needs a model of one tensor; leave it out")
        x: Tensor = args[0]
        couplings = self._couplings()
        readers = self._first(couplings, x)
        if not readers:
            self.kept.append(Kept("the input", 0, "no layer reads it as it is"))
            return None
        axis = channel_axis(readers[0], x)
        if any(channel_axis(reader, x) != axis for reader in readers):
            self.kept.append(Kept("the input", 0, "layers read it along several axes"))
            return None
        width = x.shape[axis]
        every = torch.arange(width, device=x.device)
        spare = set(range(width))
        for reader in readers:
            spare &= spare_inputs(couplings.reading(reader, range(width)))
        if len(spare) == width:
            spare.remove(0)
        if not spare:
            return every
        gone = torch.tensor(sorted(spare), device=x.device)
        left = every[~torch.isin(every, gone)]
        problem = self._attempt(
            [couplings.reading(reader, gone.tolist()) for reader in readers],
            {},
            ((x.index_fill(axis, gone, float("nan")),), {}),
            [((args[0].index_select(axis, left),), {}) for args, _ in self.examples],
        )
        if problem is None:
            return left
        self.kept.append(Kept("the input", len(spare), problem))
        return every

    def _first(self, couplings: Couplings, x: Tensor) -> list[nn.Module]:
        """The layers that read `x` itself."""
        found: dict[nn.Module, None] = {}

        def look(module: nn.Module, values: Tensor) -> Tensor:
            if values.shape == x.shape and torch.equal(values, x):
                found[module] = None
            return values

        with ExitStack() as stack:
            watch(stack, couplings.first_layers, look)
            run(self.model, self.examples[0])
        return list(found)

    def report(self, features: Tensor | None) -> Shrunk:
        layers = []
        for name, kind in self.kinds.items():
            sides: dict[str, Any] = {}
            for side in ("inputs", "outputs"):
                if (name, side) in self.left:
                    before, left = self.left[name, side]
                    sides |= {side: tuple(left), f"{side}_before": before}
            if sides:
                layers.append(Layer(name, kind, **sides))
        after = _count(self.model)
        return Shrunk(
            tuple(layers), tuple(self.kept), features, self.before, after, self.difference
        )


def _fixed_sizes(error: Exception) -> str:
    """What to do if a size that a ``forward`` has by heart was in the way."""
    if not re.search(r"shape '\[.*\]' is invalid|mat1 and mat2 shapes", str(error)):
        return ""
    return "; if forward has a size by heart, as in x.view(-1, 288), write x.flatten(1)"


def _patterns(keep: str | Iterable[str], model: nn.Module) -> tuple[str, ...]:
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)
    names = [name for name, _ in [*model.named_modules(), *model.named_parameters()] if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, 1)
            hint = (
                f"did you mean {quote(near[0])}?" if near else "model.named_modules() has the names"
            )
            raise ValueError(f"keep: no layer is called {quote(pattern)}; {hint}")
    return patterns


def _indices(members: Iterable[Member], role: Role) -> dict[nn.Module, Tensor]:
    """The channels of each layer that `members` have in a role."""
    return {
        m.module: torch.tensor(m.indices, device=m.module.weight.device)
        for m in members
        if m.role == role
    }


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
