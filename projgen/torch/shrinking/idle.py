"""Which units of a group make no difference, and what takes their place.

A channel that a layer reads is *spare* if it can go from there: the weights on it are zero, or it
is a constant that the layer's bias can hold. A unit is spare if all of its channels are.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from projgen.errors import quote
from projgen.torch.shrinking.coupling import Couplings, Group, Member
from projgen.torch.shrinking.taint import is_affine

Constants = Mapping[nn.Module, Tensor]


def unread(module: nn.Module) -> Tensor:
    """Which of the channels that an affine layer reads have only zero weights."""
    return ~_by_input(module).flatten(1).any(1)


def fold(module: nn.Module, channels: Tensor, known: Constants) -> None:
    """Let `module`'s bias hold what it reads of the constant `channels`."""
    if module not in known:
        return
    values = known[module][channels].double()
    weight = _by_input(module)[channels].double()
    weight = weight.reshape(*weight.shape[:2], -1).sum(2)  # at all offsets of a convolution
    values = values.where(weight.any(1), 0.0)  # what nothing reads need not be a constant
    if not values.any():
        return
    held = values @ weight
    if module.bias is not None:
        held += module.bias.detach()
    module.bias = nn.Parameter(held.to(module.weight.dtype))


def best(couplings: Couplings, group: Group, known: Constants) -> Group | None:
    """The largest part of `group` found that can go, and leaves no layer empty."""
    units = _spare_units(group, known)
    if len(units) == group.width:
        units = units[1:]
    if not units:
        return None
    part = couplings.narrowed(group, units)
    if _fits(part, known):
        return part
    # Some units take others along, or a layer's last channels: add them one by one.
    chosen: list[int] = []
    for unit in units:
        if unit not in chosen:
            part = couplings.narrowed(group, [*chosen, unit])
            if _fits(part, known):
                chosen = list(part.members[0].indices)
    return couplings.narrowed(group, chosen) if chosen else None


def spare_inputs(group: Group) -> set[int]:
    """The units of what is coupled with the model's input that no layer reads."""
    if group.obstacle:
        return set()
    return set(_units(group, {m.module: unread(m.module) for m in group.having("reads")}))


def idle(group: Group, known: Constants) -> list[int]:
    """The units that are zero as far as anyone can see: nobody writes, or nobody reads them."""
    written = {m.module: _unwritten(m.module) for m in group.having("writes")}
    found = set(_units(group, written, _fitting(group.having("writes"), written)))
    affine = [m for m in group.having("reads") if is_affine(m.module)]
    read = {m.module: _constant(m.module, known) for m in affine}
    if readers := _fitting(affine, read):
        found |= set(_units(group, read, readers))
    return sorted(found)


def why(group: Group, known: Constants) -> str:
    """Why units stay that are idle, where nothing is in the way of others."""
    for member in group.having("reads"):
        lost = _constant(member.module, known) & ~_spare(member.module, known)
        if lost[list(member.indices)].any():
            return (
                f"{quote(member.name, 80)} reads a constant that is not zero, and pads with zeros: "
                f"its bias cannot hold it{_silenced(group)}"
            )
    if len(_spare_units(group, known)) == group.width:
        return "a layer needs at least one channel"
    return "they are coupled with channels in use"


def _silenced(group: Group) -> str:
    """How dead channels are made to give zero. Behind a batch norm the bias before it is not the
    way: this norm's running mean would no longer fit, and be divided by a tiny deviation."""
    writers = [m for m in group.having("writes") if getattr(m.module, "bias", None) is not None]
    norms = [m for m in group.having("carries") if isinstance(m.module, _NormBase)]
    if any(m.module.bias is None for m in norms) or not (norms or writers):
        return ""
    named = " and ".join(dict.fromkeys(quote(m.name, 80) for m in norms or writers))
    means = f"{'scale and shift' if norms else 'bias'} in {named} to 0"
    if norms and len(writers) > len(norms):  # of a residual connection, say
        means += ", and each bias that no batch norm follows"
    return f" (make the dead channels give zero: set their {means})"


def _fits(part: Group, known: Constants) -> bool:
    """Whether all that `part` takes is spare, and something is left of each layer."""
    return all(len(m.indices) < m.width for m in part.members) and all(
        bool(_spare(m.module, known)[list(m.indices)].all()) for m in part.having("reads")
    )


def _units(
    group: Group, mask: Mapping[nn.Module, Tensor], members: Iterable[Member] | None = None
) -> list[int]:
    """The units whose channels are all in `mask`."""
    bad: set[int] = set()
    for member in group.having("reads") if members is None else members:
        good = mask[member.module][list(member.indices)].tolist()
        bad |= {unit for unit, fine in zip(member.units, good, strict=True) if not fine}
    return [unit for unit in range(group.width) if unit not in bad]


def _fitting(members: Iterable[Member], mask: Mapping[nn.Module, Tensor]) -> list[Member]:
    """The members whose indices are channels: what is wrongly coupled is an obstacle."""
    return [m for m in members if max(m.indices) < len(mask[m.module])]


def _spare_units(group: Group, known: Constants) -> list[int]:
    return _units(group, {m.module: _spare(m.module, known) for m in group.having("reads")})


def _constant(module: nn.Module, known: Constants) -> Tensor:
    free = unread(module)
    if module in known and len(known[module]) == len(free):  # not so for convolutions in groups
        free = free | known[module].isfinite()
    return free


def _spare(module: nn.Module, known: Constants) -> Tensor:
    free = unread(module)
    if module not in known:
        return free
    value = known[module]
    return free | (value.isfinite() if _is_uniform(module) else value == 0)


def _is_uniform(module: nn.Module) -> bool:
    """Whether constants give the same at every position of what `module` writes."""
    if not isinstance(module, _ConvNd):
        return True
    padded = module.padding != "valid" and any(x != 0 for x in module.padding)
    return not isinstance(module, _ConvTransposeNd) and (
        not padded or module.padding_mode != "zeros"
    )


def _unwritten(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight.detach()
    by_output = (
        weight.movedim(1, 0) if isinstance(module, (nn.Embedding, _ConvTransposeNd)) else weight
    )
    return ~by_output.flatten(1).any(1)


def _by_input(module: nn.Module) -> Tensor:
    """The weights of an affine layer, of shape (inputs, outputs, ...)."""
    weight: Tensor = module.weight.detach()
    return weight if isinstance(module, _ConvTransposeNd) else weight.movedim(1, 0)
