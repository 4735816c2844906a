"""Which channels of which layers go together: Torch-Pruning's dependency graph.

This is the only module that imports Torch-Pruning. Its graph says what is coupled, and takes it
out; whether that changes what the model computes is for others to find out.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from projgen.errors import quote
from projgen.torch.shrinking.taint import Inputs, is_plain

try:
    import torch_pruning
    from torch_pruning.ops import OPTYPE
except ImportError as error:
    raise ImportError("shrinking needs Torch-Pruning: pip install torch-pruning") from error

Role = Literal["writes", "carries", "reads"]

_WRITERS = {OPTYPE.CONV, OPTYPE.LINEAR, OPTYPE.EMBED}
_CARRIERS = {OPTYPE.BN, OPTYPE.PRELU, OPTYPE.DEPTHWISE_CONV, OPTYPE.PARAMETER}
_WITHOUT_CHANNELS = {
    *(OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.CONCAT, OPTYPE.SPLIT),
    *(OPTYPE.SLICE, OPTYPE.UNBIND, OPTYPE.EXPAND, OPTYPE.OUTPUT),
}


@dataclass(frozen=True)
class Member:
    """What a group has of one layer: the channels `indices`, which belong to `units` of the group.

    A layer writes them, reads them, or carries them from its input to its output.
    """

    name: str
    module: Any  # an nn.Module, or an nn.Parameter that the model uses by itself
    role: Role
    width: int
    indices: tuple[int, ...]
    units: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels that can only go together: unit i is channel i of the layer `name`, and its fellows.

    ``obstacle`` says why none can go, if so.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    obstacle: str | None
    handle: Any

    def having(self, *roles: Role) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role in roles)


class Couplings:
    """The dependency graph of `model`, which is traced on `example`."""

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        args, kwargs = example
        self._graph = torch_pruning.DependencyGraph()
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            self._graph.build_dependency(
                model,
                example,
                forward_fn=lambda model, _: model(*args, **kwargs),
                output_transform=_recorded,
                verbose=False,
            )
        self._names = {module: name for name, module in model.named_modules()}
        self._owners = _owners(model)

    @property
    def readers(self) -> list[nn.Module]:
        """The layers that read channels with weights of their own."""
        return self._having(OPTYPE.CONV, OPTYPE.LINEAR)

    @property
    def first_layers(self) -> list[nn.Module]:
        """The layers that may read the model's input and become smaller with it."""
        return self._having(OPTYPE.CONV, OPTYPE.LINEAR, OPTYPE.BN)

    def _having(self, *kinds: Any) -> list[nn.Module]:
        return [n.module for n in self._graph.module2node.values() if n.type in kinds]

    def groups(self) -> list[Group]:
        """Every group that a linear layer, a convolution or an embedding writes."""
        seen: set[nn.Module] = set()
        found = []
        for module, node in list(self._graph.module2node.items()):
            if node.type not in _WRITERS | {OPTYPE.DEPTHWISE_CONV} or module in seen:
                continue
            pruner = self._graph.get_pruner_of_module(module)
            group = self._group(module, range(pruner.get_out_channels(module)))
            seen |= {member.module for member in group.having("writes", "carries")}
            found.append(group)
        return found

    def narrowed(self, group: Group, units: Sequence[int]) -> Group:
        """The part of `group` that has to go with `units`; it may have more of them."""
        return self._group(group.members[0].module, units)

    def reading(self, module: nn.Module, channels: Sequence[int]) -> Group:
        """What goes when `module` no longer reads `channels` of the model's input."""
        pruner = self._graph.get_pruner_of_module(module)
        return self._group(module, channels, pruner.prune_in_channels)

    def _group(self, module: nn.Module, units: Sequence[int], function: Any = None) -> Group:
        pruner = self._graph.get_pruner_of_module(module)
        function = function or pruner.prune_out_channels
        handle = self._graph.get_pruning_group(module, function, list(units))
        members: list[Member] = []
        obstacles: list[str] = []
        for item in handle:
            node, indices = item.dep.target, tuple(item.idxs)
            if node.type in _WITHOUT_CHANNELS:
                continue
            member = self._member(node, item.dep.handler, indices, tuple(item.root_idxs))
            if member.width is not None:  # PReLU may have one parameter for all
                members.append(member)
                obstacles += self._obstacles(member, node.type)
        root = members[0]
        return Group(root.name, root.width, tuple(members), next(iter(obstacles), None), handle)

    def _member(
        self, node: Any, handler: Any, indices: tuple[int, ...], units: tuple[int, ...]
    ) -> Member:
        pruner = self._graph.get_pruner_of_module(node.module)
        role: Role = "carries"
        if node.type in _WRITERS:
            role = "writes" if handler == pruner.prune_out_channels else "reads"
        name = self._names.get(node.module) or self._graph._param_to_name.get(
            node.module, node.name
        )
        side = self._graph.get_in_channels if role == "reads" else self._graph.get_out_channels
        width = side(node)
        return Member(name, node.module, role, width, indices, units)

    def _obstacles(self, member: Member, kind: Any) -> Iterable[str]:
        name, module = quote(member.name, 80), member.module
        if kind not in _WRITERS | _CARRIERS:
            yield f"{name} ({type(module).__name__}) works on all of its channels together"
            return
        if kind != OPTYPE.PARAMETER:
            if not is_plain(module):
                kind = type(module).__name__
                yield f"{name} ({kind}) is not PyTorch's own layer with a weight of its own"
            groups = getattr(module, "groups", 1)
            if groups > 1 and not groups == module.in_channels == module.out_channels:
                yield f"{name} is a convolution in {groups} groups, which have to stay alike"
            shared = [o for p in module.parameters(recurse=False) for o in self._owners[p]]
            if len(set(shared)) > 1:
                other = next(o for o in shared if o != member.name)
                yield f"{name} shares a parameter with {quote(other, 80)}"
        if max(member.indices) >= member.width:
            yield f"{name} has {member.width} channels, fewer than what it is coupled with"


def remove(group: Group) -> None:
    """Take all of `group`'s units out of its model."""
    group.handle.prune(record_history=False)


def _recorded(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    recorded = [x for x in leaves if isinstance(x, Tensor) and x.grad_fn is not None]
    if not recorded:
        raise ValueError("no output has a gradient")
    return recorded


def _owners(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """The names of the modules that have each parameter."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
    return owners
