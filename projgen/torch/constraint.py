"""Constraints on the parameters that an optimiser steps: projections after its steps.

They run in the hook that PyTorch calls after a step, in place on the parameters' own memory, and
nothing of them is recorded for gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, NoReturn
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from projgen.callers import outside
from projgen.errors import quote
from projgen.misplaced import unknown
from projgen.terminal import format_count
from projgen.torch.budget import Budget, Standing, budgets, named
from projgen.torch.masks import Masks
from projgen.torch.names import Names, like_model, listed, members, require, require_both
from projgen.torch.schedule import RadiusLike, When
from projgen.torch.shards import is_sharded, local, same_memory

MANY = 1000  # steps: a warning if no epoch has ended by then
_OPTIONS = (
    "radius", "where", "every", "start", "stop", "freeze_zeros", "keep_momenta", "arrays",
)  # fmt: skip
IN_OPTIMIZER = "projgen"  # where an optimiser's state_dict has those of its constraints


_attached: WeakKeyDictionary[torch.optim.Optimizer, WeakSet[Constraint]] = WeakKeyDictionary()


class Constraint:
    """Projections that keep parameters in balls while an optimiser trains them.

    `constrain` makes it, and it needs no more attention: it lives as long as the optimiser, or
    until `remove`. ``with constrain(…):`` removes it at the end.

    Attributes:
        steps: how many steps the optimiser has taken.
        epochs: how many epochs have ended, if `epoch_end` was told.
        when: when it projects.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module,
        names: Names,
        found: list[Budget],
        when: When,
        freeze_zeros: bool,
        keep_momenta: bool,
    ) -> None:
        self.steps = 0
        self.epochs = 0
        self.when = when
        self._model = model
        self._optimizer = optimizer
        self._names = names
        self._known: dict[str, Tensor] = {}
        self._budgets = found
        self._masks = Masks(names, optimizer)
        self._freeze_zeros, self._keep_momenta = freeze_zeros, keep_momenta
        self._projects = True
        self._require_members()
        with torch.no_grad():
            for budget in found:
                budget.begin(self._tensor)
        self._loaded: Mapping[str, Any] | None = None
        self._warn_of_twins()
        apart: Any = torch.compiler.disable  # the hook is no part of a step that is compiled
        self._hooks = [
            optimizer.register_step_post_hook(apart(self._after_step)),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._read),
            optimizer.register_load_state_dict_post_hook(self._load),
        ]
        _attached.setdefault(optimizer, WeakSet()).add(self)

    # When and what

    @property
    def specs(self) -> dict[str, str]:
        """The spec of each parameter; of several under one budget, of the budget."""
        return {budget.key: budget.projection.spec for budget in self._budgets}

    @property
    def names(self) -> list[str]:
        """The names of the parameters."""
        return [name for budget in self._budgets for name in budget.names]

    @property
    def frozen(self) -> dict[str, Tensor]:
        """For each parameter with zeros that stay: bool, true where an entry stays zero."""
        return dict(self._masks.frozen)

    @property
    def clock(self) -> int:
        """What `start`, `stop` and schedules count: the steps, or with every="epoch" the epochs."""
        return self.epochs if self.when.by_epoch else self.steps

    def standings(self) -> list[Standing]:
        """How each budget stands: radius, norm, groups that are left."""
        with torch.no_grad():
            return [budget.standing(self._tensor, self._since) for budget in self._budgets]

    def project(self) -> None:
        """Project now, on the present radius, whatever `every`, `start` and `stop` say.

        ValueError: a parameter is not finite; it is untouched then, as are those after it.
        """
        with torch.no_grad():
            self._masks.hold_parameters()
            for budget in self._budgets:
                try:
                    budget.project(self._tensor, self._since)
                except (TypeError, ValueError) as error:
                    self._explain(budget, error)
            if self._freeze_zeros:
                self._masks.freeze(self.names)
            if not self._keep_momenta:
                self._masks.calm(self.names)
            self._masks.hold_state()

    def epoch_end(self) -> None:
        """Say that an epoch has ended, which is when every="epoch" projects."""
        self.epochs += 1
        if not self.when.by_epoch and self.epochs == 1:
            warnings.warn(
                f"this constraint projects {self.when}; to project when an epoch ends, say "
                "constrain(…, every='epoch')",
                stacklevel=outside("projgen"),
            )
        if self.when.by_epoch and self._is_due():
            self.project()

    # Zeros that stay

    def freeze(self, *, project: bool = False) -> None:
        """Let every entry that is zero now stay zero: in the parameters, and in the optimiser's
        momenta. The others train freely from here on, or with `project` under the constraint."""
        if self.steps and self._projects and not self._is_projected:
            why = "epoch_end() was not called" if self.when.by_epoch and not self.epochs else (
                f"start={self.when.start}" if self.clock <= self.when.start else str(self.when)
            )  # fmt: skip
            warnings.warn(
                f"freeze() after {format_count(self.steps, 'step')}, and nothing has been "
                f"projected yet: {why}",
                stacklevel=outside("projgen"),
            )
        with torch.no_grad():
            self._masks.freeze(self.names)
            self._masks.hold()
        self._projects = project

    def rewind(self, initial: Mapping[str, Any]) -> None:
        """Give the model the parameters and buffers of `initial`, but for the zeros that stay.

        With `freeze`, this begins the second phase of a *double descent* (arXiv 2405.02086):
        what the optimiser knows of the model's parameters is forgotten too.

        Args:
            initial: ``copy.deepcopy(model.state_dict())`` from before the training.

        Raises:
            RuntimeError: no zeros are frozen; or `initial` does not fit the model.
            TypeError: `initial` is no state_dict.
            ValueError: `initial` is the model's memory itself, which has been trained.
        """
        taken = "copy.deepcopy(model.state_dict()) from before the training"
        require(initial, Mapping, f"initial must be {taken}")
        if not self._masks.frozen:
            raise RuntimeError("call freeze() before rewind(): no zeros are frozen, so it would "
                               "bring them all back")  # fmt: skip
        state = like_model(self._model, initial)
        for name, tensor in self._model.state_dict().items():
            given = state.get(name)
            if isinstance(given, Tensor) and same_memory(given, tensor):
                raise ValueError(
                    f"initial has the model's own memory for {quote(name, 80)}: take {taken}"
                )
        self._model.load_state_dict(state)
        for tensor in self._model.parameters():
            self._optimizer.state.pop(tensor, None)
        with torch.no_grad():
            self._masks.hold()

    # What is saved

    def state_dict(self) -> dict[str, Any]:
        """Steps and epochs, initial norms, and which zeros stay.

        The optimiser's state_dict has it as well, and loads it with its own.
        """
        return {
            "specs": self.specs,
            "steps": self.steps,
            "epochs": self.epochs,
            "norms": {budget.key: budget.norm for budget in self._budgets},
            "projected": [budget.key for budget in self._budgets if budget.projected],
            "projects": self._projects,
            "frozen": self.frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken. Radii and schedules are those given here.

        ValueError: it is that of a constraint on other parameters, or with other specs.
        """
        self._check(state)
        self.steps, self.epochs = int(state["steps"]), int(state["epochs"])
        for budget in self._budgets:
            budget.norm = state["norms"][budget.key]
            budget.projected = budget.key in state.get("projected", self.specs)
        self._projects = bool(state["projects"])
        self._masks.frozen = {
            name: frozen.to(self._tensor(name).device) for name, frozen in state["frozen"].items()
        }

    def _check(self, state: Mapping[str, Any]) -> None:
        if state.get("specs") != self.specs:
            raise ValueError(f"this state is that of another constraint: of {state.get('specs')}, "
                             f"and here are {self.specs}")  # fmt: skip
        shapes = {name: tuple(self._tensor(name).shape) for name in self.names}
        for name, frozen in state["frozen"].items():
            if shapes.get(name) != tuple(frozen.shape):
                raise ValueError(
                    f"this state is that of another model: {quote(name, 80)} has shape "
                    f"{tuple(frozen.shape)} there, and {shapes.get(name, 'no constraint')} here"
                )

    def _save(self, optimizer: Any, state: dict[str, Any]) -> None:
        state.setdefault(IN_OPTIMIZER, []).append(self.state_dict())

    def _read(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Find this constraint's state in an optimiser's, which is about to be loaded, and take it
        out: of constraints with the same specs, each finds its own, in the order of their making.
        """
        saved = state.get(IN_OPTIMIZER)
        self._loaded = None
        if saved is None:  # of a time before the constraint
            return
        places = [i for i, own in enumerate(saved) if own["specs"] == self.specs]
        if not places:
            raise ValueError(
                f"this optimiser's state has no constraint like {self.specs} that is not another's"
                f", but {[own['specs'] for own in saved]}; without its entry {IN_OPTIMIZER!r} it "
                "can be loaded, and the constraint begins anew"
            )
        mine = saved[places[0]]
        self._check(mine)
        self._loaded = mine
        state[IN_OPTIMIZER] = [*saved[: places[0]], *saved[places[0] + 1 :]]

    def _load(self, optimizer: Any) -> None:
        if self._loaded is not None:
            self.load_state_dict(self._loaded)
            self._loaded = None

    # Attached

    def remove(self) -> None:
        """Leave the optimiser alone from now on. Parameters stay as they are."""
        while self._hooks:
            self._hooks.pop().remove()
        _attached.get(self._optimizer, WeakSet()).discard(self)

    def __enter__(self) -> Constraint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __reduce__(self) -> Any:
        raise TypeError("a Constraint belongs to its optimiser, and is neither copied nor pickled: "
                        "keep its state_dict(), and call constrain again")  # fmt: skip

    def __repr__(self) -> str:
        if not self._hooks:
            note = ", removed"
        else:
            note = "" if self._is_projected else ": not yet projected"
        ended = (
            f", {self.epochs} epoch{'s' * (self.epochs != 1)} ended" if self.when.by_epoch else ""
        )
        return (f"<projgen.torch.Constraint on {listed(self.names)}: {self.when}, after "
                f"{self.steps} steps{ended}{note}>")  # fmt: skip

    # After a step

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # A fused optimiser is called even for a step that GradScaler has it skip.
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is not None and bool(skipped):
            return
        self.steps += 1
        if not self.when.by_epoch and self._is_due():
            self.project()
        elif self._masks.frozen:
            with torch.no_grad():
                self._masks.hold()
        if self.when.by_epoch and self._projects and not self.epochs and self.steps == MANY:
            warnings.warn(
                f"{MANY} steps, and no epoch has ended: every='epoch' projects "
                f"{listed(self.names)} when epoch_end() is called, after each epoch",
                stacklevel=outside("projgen", "torch"),  # the line that stepped
            )

    @property
    def _is_projected(self) -> bool:
        return any(budget.projected for budget in self._budgets)

    @property
    def _since(self) -> int:
        """What schedules are asked for: 1 after the first step that counts, and before it."""
        return max(1, self.clock - self.when.start)

    def _is_due(self) -> bool:
        return self._projects and self.when.is_due(self.clock)

    def _tensor(self, name: str) -> Tensor:
        """The parameter; a RuntimeError if it is another one now, which the optimiser lacks."""
        tensor = self._names.tensor(name)
        if self._known.get(name) is not tensor:
            if id(tensor) not in members(self._optimizer):
                gathered = hasattr(self._model, "reshard")  # by FSDP, for a forward pass
                hint = ", or call model.reshard() if it is gathered" if gathered else ""
                raise RuntimeError(f"{quote(name, 80)} is another tensor now, which the optimiser "
                                   "does not have: make the optimiser and its constraints after "
                                   f"the model is changed{hint}")  # fmt: skip
            self._known[name] = tensor
        return tensor

    def _warn_of_twins(self) -> None:
        """Warn of a constraint that does the same at the same time: it was forgotten."""
        for other in _attached.get(self._optimizer, ()):
            own, before = (
                {(budget.projection.spec, id(each._known[name])): name
                 for budget in each._budgets for name in budget.names}
                for each in (self, other)
            )  # fmt: skip
            both = [name for key, name in own.items() if key in before]
            if both and other._goes_on and self.when.meets(other.when):
                warnings.warn(
                    f"the optimiser has a constraint with the same spec on {listed(both)} already, "
                    "and both project it from now on: remove() the first, or make the optimiser "
                    "anew too",
                    stacklevel=outside("projgen"),
                )

    @property
    def _goes_on(self) -> bool:
        """Whether a projection may come."""
        stop = self.when.stop
        return self._projects and (stop is None or self.clock < stop)

    def _require_members(self) -> None:
        stepped = members(self._optimizer)
        strange = [name for name in self.names if id(self._names.tensor(name)) not in stepped]
        if strange:
            raise ValueError(f"the optimiser does not have {listed(strange)}: give it these "
                             "parameters first, or constrain others")  # fmt: skip

    def _explain(self, budget: Budget, error: Exception) -> None:
        """Raise `error` again, saying where and when; of a step that has diverged, just that."""
        for name in budget.names:
            values = local(self._tensor(name))
            finite = torch.isfinite(values)
            if not bool(finite.all()):
                at = tuple((~finite).nonzero()[0].tolist())
                where = f"{at} of this rank's shard" if is_sharded(self._tensor(name)) else f"{at}"
                raise ValueError(
                    f"step {self.steps} left {float(values[at])} in {quote(name, 80)}, at index "
                    f"{where}: the training has diverged. The constraint wrote nothing there; go on"
                    " from a checkpoint, with a lower learning rate or clipped gradients"
                ) from None
        with named(f"after step {self.steps}, {budget.key}"):
            raise error


def constrain(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    constraints: Any,
    radius: RadiusLike = None,
    *,
    where: Any = None,
    every: int | Literal["epoch"] = 1,
    start: int = 0,
    stop: int | None = None,
    freeze_zeros: bool = False,
    keep_momenta: bool = False,
    arrays: Mapping[str, Any] | None = None,
    **misspelt: NoReturn,
) -> Constraint:
    """Project parameters of `model` after each step of `optimizer`::

        constrain(optimizer, model, {"encoder.0.weight": "l1(linf(axis=0))"}, radius=1.0)
        constrain(optimizer, model, {"encoder.*.weight": "l1(linf)"}, radius="10%")
        constrain(optimizer, model, 'l1(linf(axis=1) @ "encoder.*.weight")', radius=10.0)
        constrain(optimizer, model, "l1(a=linf(axis=1), b=linf(axis=0))", radius=10.0,
                  where={"a": "encoder.0.weight", "b": "decoder.0.weight"})

    Args:
        optimizer: it must step all parameters that are constrained.
        model: the module that their names belong to; `torch.compile` may be around it.
        constraints: a dict of specs, or of what `projgen.build` made of them. Its keys are names of
            parameters, names of modules, which stand for their ``weight``, or patterns as a
            shell's; each parameter has a budget of its own, and the first key that matches one
            takes it. Or one spec of a tree with branches, whose parameters share a budget: its
            patterns say which, or `where`.
        radius: a number; a part of the initial norm, such as ``"10%"``, where initial means now;
            an array over the spec's batch axes; a schedule (`linear`, `cosine`, `geometric`, or a
            function from the number of steps since `start` to one of these); or a dict with one of
            them for each key of `constraints`. Specs with the count of l0 take none.
        where: for a single spec, the parameters' names: a structure like that of the arrays which
            it takes, such as a dict for named children.
        every: project after each that many steps, or when `epoch_end` says so with ``"epoch"``.
        start: how many steps are left as they are first; with ``every="epoch"``, epochs.
        stop: the last step, or epoch, after which it projects; None for all to come.
        freeze_zeros: whether entries stay zero once a projection has made them so. If not, a new
            gradient may bring them back.
        keep_momenta: whether momenta stay as they are where a projection leaves zero. If not they
            become zero too, so that no earlier gradient brings such entries back.
        arrays: the weights (``w=``) and labels (``groups=``) that specs name.

    Raises:
        SpecError, TypeError, ValueError: a spec that does not fit its parameter, a radius that is
            none; names that match nothing (with suggestions), parameters that the optimiser does
            not have.

    Tied parameters are projected once. Parameters are projected whether or not they require
    gradients.
    """
    for name in misspelt:
        raise TypeError(unknown("constrain", name, _OPTIONS))
    require_both(optimizer, model, "constrain")
    when = When(every, start, stop)
    names = Names(model)
    found = budgets(names, constraints, where, radius, arrays or {})
    used = {name for budget in found for name in budget.given}
    if strange := [str(name) for name in arrays or {} if name not in used]:
        raise ValueError(f"no spec names {listed(strange)} among its weights and labels")
    return Constraint(optimizer, model, names, found, when, freeze_zeros, keep_momenta)


__all__ = ["Constraint", "Standing", "constrain"]
