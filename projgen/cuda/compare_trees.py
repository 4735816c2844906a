"""`return_info` of a tree on a GPU: norms are the GPU's, everything else is the host's.

All arrays are sent to the host for it, before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from projgen.arrays import Array
from projgen.compare_trees import account, searches
from projgen.cuda.call import on_stream
from projgen.cuda.project import radii_for
from projgen.cuda.trees import OnDevice
from projgen.cuda.weights import on_host
from projgen.info import Info
from projgen.references import REFERENCES
from projgen.structure import Key

if TYPE_CHECKING:
    from projgen.projection import Projection
    from projgen.reading import Reading


def with_info(
    projection: Projection,
    before: Reading,
    make: Callable[[], Any],
    read: Callable[[Any], Reading],
    radius: Any,
) -> tuple[Any, Info]:
    """What `make` makes, and what that did; `read` gives the call that asks for its norm."""
    bound, gpu = before.bound, _gpu(before)
    radii = radii_for(radius, bound.batch, projection.spec, gpu.lead)
    if not isinstance(radii, float):
        with on_stream(gpu.device, gpu.stream):
            radii = radii.get()
    norms = _norms(before)
    values = _root_values(before) if searches(bound, norms) else None
    arrays, dtypes = _sent(gpu), {key: array.dtype for key, array in gpu.arrays.items()}
    made = make()
    after = read(made)
    info = account(
        bound, arrays, _sent(_gpu(after)), norms, _norms(after), values,
        np.full(bound.batch, radii), on_host(before.given), dtypes,
    )  # fmt: skip
    return made, info


def _gpu(call: Reading) -> OnDevice:
    assert call.gpu is not None
    return call.gpu


def _norms(call: Reading) -> Array:
    gpu = _gpu(call)
    with on_stream(gpu.device, gpu.stream):
        norms = gpu.norms(call.ready, call.given)
        found: Array = norms.get()
        return found


def _root_values(call: Reading) -> Array | None:
    """What the root aggregates, along the last axis; None if its part sweeps an array."""
    gpu = _gpu(call)
    with on_stream(gpu.device, gpu.stream):
        found = gpu.root_values(call.ready, call.given)
        if found is None:
            return None
        part, values = found
        values = values.get()
    for place in part.places[:0:-1]:
        values = REFERENCES[place.node.norm].norm(values, (-1,))[..., 0]
    return np.asarray(values)


def _sent(gpu: OnDevice) -> dict[Key, Array]:
    """The arrays, on the host; bfloat16 as float32."""
    sent = {}
    for key, array in gpu.arrays.items():
        with on_stream(array.device, array.stream):
            sent[key] = array.read((...,))
    return sent
