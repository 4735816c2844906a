"""Sharded tensors: what many processes find together is what one finds alone.

Four processes start once, and make all checks, for some of which a mesh of two is half of them;
then two start, and make the checks that have nothing to do with four. At the end one of them dies.
"""

import copy
import json
import multiprocessing
import os
import re
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from support import rehearsals

import projgen
from projgen.arms import bind_arm
from projgen.check import parse_tree
from projgen.cpu.tally import Tally

torch = pytest.importorskip("torch")
dist = torch.distributed
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("PyTorch has no gloo here", allow_module_level=True)
pytest.importorskip("torch.distributed.tensor")
from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

from projgen.torch.sharded import calls, operand, wire  # noqa: E402
from projgen.torch.sharded.layout import Sharding, find_seam  # noqa: E402

WORLDS = (4, 2)
ROOT = Path(__file__).parents[1]
ROWS, COLUMNS = "l1(linf(axis=1))", "l1(linf(axis=0))"
R, S = Replicate(), [Shard(axis) for axis in range(3)]
Check = Callable[[Any], None]
CHECKS: dict[int, dict[str, Check]] = {size: {} for size in WORLDS}


def check(function: Check) -> Check:
    """One that all processes make, if there are four."""
    CHECKS[4][function.__name__] = function
    return function


def check_by_two_as_well(function: Check) -> Check:
    """One that all processes make, if there are four and if there are two."""
    CHECKS[2][function.__name__] = function
    return check(function)


def random(*shape: int, seed: int = 0, dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def placed(y: Any, mesh: Any, *placements: Any) -> Any:
    """The DTensor, each rank's shard taken from what it has itself."""
    return distribute_tensor(y.clone(), mesh, placements, src_data_rank=None)


def whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor()
    return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def assert_near(found: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    found, wanted = found.to_local(), wanted.to_local()
    assert found.shape == wanted.shape
    error = (found.double() - wanted.double()).abs()
    assert not error.numel() or float(error.max()) <= tolerance, float(error.max())


def assert_projected(spec: str, y: Any, mesh: Any, *placements: Any, part: float = 0.3) -> None:
    """All that is asked of a projection is what one process says."""
    p, oracle = projgen.build(spec), projgen.build(spec, backend="numpy")
    norm = oracle.norm(y)
    radius = None if oracle.tree.root.k is not None else part * norm
    wanted, d = oracle(y, radius), placed(y, mesh, *placements)
    before = d.to_local().clone()
    x = p(d, radius)
    assert x.placements == d.placements and x.shape == y.shape
    assert_near(x, placed(wanted, mesh, *placements))
    assert torch.equal(d.to_local(), before)
    if part >= 1:
        assert torch.equal(x.to_local(), before)
    torch.testing.assert_close(whole(p.norm(d)), whole(norm), rtol=1e-12, atol=0)
    assert torch.equal(whole(p.active(x)), torch.as_tensor(oracle.active(wanted)))
    assert p(d, radius, out=d) is d
    assert torch.equal(d.to_local(), x.to_local())


# What all processes check


@check_by_two_as_well
def along_the_axes_of_groups(world: Any) -> None:
    """Each rank has whole groups: their values are gathered, or nothing is."""
    for spec in (ROWS, "l1(l2)", "l1(l1)", "l2(linf)", "linf(l1)", "l0(l2(axis=1), k=3)"):
        assert_projected(spec, random(7, 6), world.pair, S[0])
    for spec in (COLUMNS, "l1(axis=0)", "l0(axis=0, block=3, k=2)", "simplex(axis=0)"):
        assert_projected(spec, random(6, 7), world.pair, S[1])
    assert_projected("lp(linf, p=1.5)", random(6, 5), world.line, S[0])


@check_by_two_as_well
def along_the_axes_that_are_reduced(world: Any) -> None:
    """Groups are in pieces on all ranks."""
    for spec in (ROWS, "l1(l2(axis=1))", "l1(l1(axis=1))", "l1(axis=1)", "l2(axis=1)"):
        assert_projected(spec, random(5, 7), world.pair, S[1])
    for spec in ("l1", "l2", "linf", COLUMNS, "l2(l1(axis=0))"):
        assert_projected(spec, random(9, 4, seed=1), world.line, S[0])


@check_by_two_as_well
def along_both(world: Any) -> None:
    """A mesh of two axes."""
    for spec in (ROWS, "l1(l1)", "l1(l2(axis=0))", "l1"):
        assert_projected(spec, random(7, 6), world.square, S[0], S[1])
    assert_projected("l1(l1)", random(7, 6), world.square, S[1], S[0])
    for spec in (ROWS, "l1(l1(axis=0))"):  # an axis that is cut twice
        assert_projected(spec, random(7, 5), world.square, S[0], S[0])
    assert_projected("l1(l2(l2))", random(5, 4, 3), world.square, S[1], S[2])
    assert_projected("l1(l1(l1))", random(5, 4, 3), world.square, S[1], S[2])
    assert_projected("l2(l1, axis=1)", random(5, 4, 3), world.square, S[0], S[1])


@check
def replicas_are_the_same_to_the_bit(world: Any) -> None:
    for placements in ([R, S[0]], [S[1], R], [R, R]):
        for spec in ("l1(l1)", "l1(l2)"):
            assert_projected(spec, random(7, 6), world.square, *placements)
    x = projgen.build("l1(l1)")(placed(random(7, 6), world.square, R, S[1]), 3.0).to_local()
    others = [torch.empty_like(x) for _ in range(2)]
    dist.all_gather(others, x.contiguous(), group=world.square.get_group(0))
    assert torch.equal(*others)


@check_by_two_as_well
def shards_that_are_empty_or_not_alike(world: Any) -> None:
    for spec, shape in ((ROWS, (3, 5)), (COLUMNS, (3, 5)), ("l1(l1)", (1, 5)), ("l1", (2,))):
        assert_projected(spec, random(*shape), world.line, S[0])
    assert_projected("l1(axis=1)", random(3, 5), world.line, S[0])
    p = projgen.build(ROWS)
    assert p(placed(random(0, 5), world.line, S[0]), 1.0).shape == (0, 5)


@check
def radii(world: Any) -> None:
    y = random(6, 8)
    for part in (0.0, 0.01, 0.99, 1.5):
        assert_projected("l1(l1(axis=0))", y, world.pair, S[0], part=part)
        assert_projected("l1(l2)", y, world.pair, S[1], part=part)
    x = projgen.build(ROWS)(placed(y, world.pair, S[0]), float("inf"))
    assert torch.equal(x.full_tensor(), y)
    batch = torch.linspace(0.5, 3.0, 8, dtype=torch.float64)  # one for each column
    wanted = projgen.build("l1(axis=0)", backend="numpy")(y, batch)
    for placement in S[:2]:
        d = placed(y, world.pair, placement)
        found = projgen.build("l1(axis=0)")(d, batch)
        assert_near(found, placed(wanted, world.pair, placement))
        norms = projgen.build("l1(axis=0)").norm(d)  # a DTensor is a radius too
        halves = projgen.build("l1(axis=0)")(d, 0.5 * norms)
        assert_near(
            halves,
            placed(projgen.build("l1(axis=0)", backend="numpy")(y, 0.5 * y.abs().sum(0)),
                   world.pair, placement),
        )  # fmt: skip


@check
def dtypes_and_strides(world: Any) -> None:
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float16, 2e-3)):
        y = random(6, 8, dtype=dtype)
        for spec in (ROWS, "l1(l1)"):
            norm = projgen.build(spec, backend="numpy").norm(y)
            wanted = projgen.build(spec, backend="numpy")(y, 0.3 * norm)
            for placement in S[:2]:
                x = projgen.build(spec)(placed(y, world.pair, placement), 0.3 * norm)
                assert x.dtype is dtype
                assert_near(x, placed(wanted, world.pair, placement), tolerance)
    turned = placed(random(6, 8).t(), world.pair, S[0])
    local = turned.to_local().t().contiguous().t()
    d = DTensor.from_local(local, world.pair, [S[0]], run_check=False)
    wanted = projgen.build("l1(l1)", backend="numpy")(random(6, 8).t(), 4.0)
    assert_near(projgen.build("l1(l1)")(d, 4.0, out=d), placed(wanted, world.pair, S[0]))
    huge = random(6, 8) * 1e170  # their squares are beyond float64, which one process scales
    wanted = projgen.build(ROWS, backend="numpy")(huge, 1e170) / 1e170
    found = projgen.build(ROWS)(placed(huge, world.pair, S[1]), 1e170)
    assert_near(found / 1e170, placed(wanted, world.pair, S[1]))


@check_by_two_as_well
def trees(world: Any) -> None:
    """Several DTensors under one budget, each in shards of its own."""
    a, b, c = random(7, 6), random(3, 9, seed=1), random(5, 4, seed=2)
    y = {"a": a, "b": b, "c": c}
    spec = 'l1(linf(axis=1) @ "a", 2.0*l1(axis=0) @ "b", l2(l2) @ "c")'
    p, oracle = projgen.build(spec), projgen.build(spec, backend="numpy")
    radius = 0.4 * oracle.norm(y)
    wanted = oracle(y, radius)
    for cuts in ((S[0], S[0], S[1]), (S[1], S[1], R)):
        d = {name: placed(y[name], world.pair, cut) for name, cut in zip(y, cuts, strict=True)}
        x = p(d, radius)
        assert abs(p.norm(d) - oracle.norm(y)) <= 1e-12 * oracle.norm(y)
        active = p.active(x)
        for name, cut in zip(y, cuts, strict=True):
            assert_near(x[name], placed(wanted[name], world.pair, cut))
            assert torch.equal(whole(active[name]), whole(oracle.active(wanted)[name]))
        p(d, radius, out=d)
        assert all(torch.equal(d[name].to_local(), x[name].to_local()) for name in y)
    counted = projgen.build("l0(l2(axis=1), l2(axis=1), k=4)")
    x = counted([placed(a, world.pair, S[0]), placed(c, world.pair, S[1])])
    assert sum(int(whole(each).sum()) for each in counted.active(x)) == 4


@check
def what_crosses_the_network(world: Any) -> None:
    """Numbers of each collective: those of groups, and never those of the array."""
    y, sent = random(64, 40), []

    def counting(function: Any, which: int) -> Any:
        def call(*tensors: Any, **options: Any) -> Any:
            sent.append(tensors[which].numel())
            return function(*tensors, **options)

        return call

    word = 5
    with (
        patch.object(wire.dist, "all_reduce", counting(dist.all_reduce, 0)),
        patch.object(wire, "_gather_single", counting(wire._gather_single, 1)),
    ):
        for spec, placements, wanted in (
            (ROWS, [S[0]], [word, 16, word]),  # the rows of this rank
            (ROWS, [S[1]], [word, 64, word]),  # all rows, of which this rank has a part
            ("l1(l2(axis=0))", [S[0]], [word, 40, word]),
            ("l1(axis=1)", [S[0]], [word]),
            ("linf(l1)", [S[0]], [word, 1]),
            ("l2", [S[0]], [word, 1]),
        ):
            sent.clear()
            projgen.build(spec)(placed(y, world.line, *placements), 2.0)
            assert sent == wanted, (spec, sent)
        sent.clear()
        projgen.build("l1(l1(axis=0))")(placed(y, world.line, S[0]), 200.0)
        assert sent[:3] == [word, 40, word] and set(sent[3:]) == {80} and len(sent) < 15, sent
        sent.clear()
        projgen.build("l1")(placed(y, world.line, S[0]), 200.0)
        assert sent[:2] == [word, 1] and set(sent[2:]) == {2} and len(sent) < 20, sent


def assert_raises(kind: type[Exception], words: str, function: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=words):
        function()


@check
def errors_are_those_of_all_ranks(world: Any) -> None:
    p, y, rank = projgen.build(ROWS), random(7, 6), world.rank
    for bad in (float("nan"), float("inf")):
        for placement in S[:2]:
            d = placed(y, world.line, placement)
            if rank == 1:
                d.to_local()[0, 0] = bad
            before = d.to_local().clone()
            words = rf"rank 1 has {bad} at index \(0, 0\)" if rank == 1 else "rank 1 has NaN or inf"
            for call in (lambda: p(d, 1.0, out=d), lambda: p(d, 1.0), lambda: p.norm(d)):  # noqa: B023
                assert_raises(ValueError, words, call)
            assert torch.equal(d.to_local().nan_to_num(), before.nan_to_num())
    d = placed(y, world.line, S[0])
    assert_raises(RuntimeError, "do not call with the same", lambda: p(d, 1.0 + rank))
    if rank == 2:
        assert_raises(ValueError, "at least 0", lambda: p(d, -1.0))
    else:
        assert_raises(RuntimeError, "rank 2 has an error of its own", lambda: p(d, 1.0))
    assert torch.equal(d.to_local(), placed(y, world.line, S[0]).to_local())
    large = placed(y * 1e200, world.line, S[0])
    assert_raises(ValueError, "range of float64", lambda: projgen.build("l1(l2)")(large, 1.0))


@check_by_two_as_well
def what_fails_between_sweeps_fails_everywhere(world: Any) -> None:
    """Kernels that are compiled at first use may fail on one rank, late; all take part until all
    are ready to write."""
    p = projgen.build('l1(linf(axis=1) @ "a", l1(axis=0) @ "b")')
    y = {"a": random(7, 6), "b": random(5, 4, seed=1)}
    d = {name: placed(each, world.line, S[0]) for name, each in y.items()}  # b's groups in pieces
    for place, name, call in (
        (calls, "Shard", lambda: p(d, 2.0, out=d)),
        (operand, "Search", lambda: p(d, 2.0, out=d)),
        (calls, "Top", lambda: p(d, 2.0, out=d)),
        (calls.Top, "radii", lambda: p(d, 2.0, out=d)),
        (calls.Top, "norms", lambda: p.norm(d)),
        (calls, "_nonzero", lambda: p.active(d)),
    ):
        calls._top.cache_clear()
        fails = patch.object(place, name, side_effect=OSError("no room"))
        if world.rank == 1:
            with fails:
                assert_raises(OSError, "no room", call)
        else:
            assert_raises(RuntimeError, "rank 1 has an error of its own", call)
        for key, each in y.items():
            assert torch.equal(d[key].to_local(), placed(each, world.line, S[0]).to_local())
    p(d, 2.0, out=d)
    assert float(p.norm(d)) == pytest.approx(2.0)


@check
def results_that_would_meet_are_refused(world: Any) -> None:
    """As in one process: no result goes to where another array is."""
    p, a, b = projgen.build('l1(linf @ "*")'), random(7, 6), random(7, 6, seed=1)
    da, db = (placed(each, world.line, S[0]) for each in (a, b))
    crossed = {"a": db, "b": da}
    for y, out in (({"a": da, "b": db}, crossed), ({"a": da, "b": da}, {"a": da, "b": da})):
        assert_raises(ValueError, "out a shares memory with y b", lambda: p(y, 2.0, out=out))  # noqa: B023
    target = placed(a, world.line, S[0])
    both = {"a": target, "b": target}
    assert_raises(ValueError, "out a and out b share", lambda: p({"a": da, "b": db}, 2.0, out=both))
    mine = {"a": da, "b": db} if world.rank else crossed  # an error of one rank's own
    kind, words = (RuntimeError, "rank 0 has an error") if world.rank else (ValueError, "shares")
    assert_raises(kind, words, lambda: p({"a": da, "b": db}, 2.0, out=mine))
    for d, each in ((da, a), (db, b)):
        assert torch.equal(d.to_local(), placed(each, world.line, S[0]).to_local())
    twice = p({"a": da, "b": da}, 2.0)  # to new places it may be
    assert torch.equal(twice["a"].to_local(), twice["b"].to_local())


@check
def what_is_refused(world: Any) -> None:
    y = random(7, 6)
    d = placed(y, world.line, S[0])
    partial = DTensor.from_local(y, world.line, [Partial()], run_check=False)
    other, radii = placed(y, world.square, S[0], S[1]), placed(torch.ones(7), world.line, R)
    p = projgen.build(ROWS)
    for kind, words, call in (
        (TypeError, "Partial", lambda: p(partial, 1.0)),
        (TypeError, "out must be a DTensor", lambda: p(d, 1.0, out=y)),
        (ValueError, "mesh and placements", lambda: p(d, 1.0, out=placed(y, world.line, S[1]))),
        (TypeError, "radius is missing", lambda: p(d)),
        (TypeError, "return_info", lambda: p(d, 1.0, return_info=True)),
        (TypeError, "gradients", lambda: p.vjp(d, 1.0)),
        (TypeError, "exact", lambda: projgen.build(ROWS, exact=True)(d, 1.0)),
        (TypeError, "backend", lambda: projgen.build(ROWS, backend="numpy")(d, 1.0)),
        (TypeError, "names w", lambda: projgen.build("l1(w=w)")(d, 1.0, w=y)),
        (TypeError, "nonneg", lambda: projgen.build("l1(nonneg=True)")(d, 1.0)),
        (TypeError, "l0.*axis=0.* reduces", lambda: projgen.build("l0(axis=0, k=2)")(d)),
        (TypeError, "into blocks", lambda: projgen.build("l0(axis=0, block=7, k=2)")(d)),
        (TypeError, "int64", lambda: p(placed(y.long(), world.line, S[0]), 1.0)),
        (TypeError, "is no DTensor", lambda: projgen.build("l1(l2, l2)")([d, y], 1.0)),
        (TypeError, "share one mesh", lambda: projgen.build("l1(l2, l2)")([d, other], 1.0)),
        (ValueError, "placements of p.norm", lambda: projgen.build("l1(axis=1)")(d, radii)),
        (projgen.SpecError, "too few axes", lambda: projgen.build("l1(l1(l1))")(d, 1.0)),
    ):
        assert_raises(kind, words, call)
    leaf = torch.nn.Parameter(d)
    assert torch.equal(p.active(leaf).full_tensor(), torch.ones(7, dtype=torch.bool))
    assert_raises(TypeError, "gradients", lambda: p(leaf, 1.0))
    assert_raises(TypeError, "gradients", lambda: projgen.torch.project(leaf, ROWS, 1.0))
    with torch.no_grad():
        found = projgen.torch.project(leaf, ROWS, 1.0)
    assert torch.equal(found.to_local(), p(d, 1.0).to_local())


def network() -> Any:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3), nn.ReLU(), nn.Linear(3, 1))


def trained(model: Any, optimizer: Any, steps: int = 3) -> None:
    for step in range(steps):  # the same batch on all ranks: its gradient is that of each
        x = random(16, 7, seed=step, dtype=torch.float32)
        optimizer.zero_grad()
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()


@check_by_two_as_well
def constraints_on_fsdp(world: Any) -> None:
    """Training in shards ends where training in one process does; a layer has fewer rows than
    there are ranks."""
    from torch.distributed.fsdp import fully_shard

    alone, model = network(), network()
    for layer in (model[0], model[2], model[4], model):
        fully_shard(layer, mesh=world.line)
    keys = {"0": COLUMNS, "2.weight": "l1(l1(axis=1))", "4": "l1(l2(axis=0))"}
    handles, optimizers = [], []
    for each in (alone, model):
        optimizer = torch.optim.Adam(each.parameters(), lr=0.05)
        initial = copy.deepcopy(each.state_dict())
        handle = projgen.torch.constrain(optimizer, each, keys, radius="30%", freeze_zeros=True)
        trained(each, optimizer)
        handle.freeze()
        trained(each, optimizer, 1)
        handle.rewind(initial)
        trained(each, optimizer, 2)
        handles.append(handle)
        optimizers.append(optimizer)
    for (name, ours), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), other, rtol=1e-4, atol=1e-5, msg=name)
    for ours, other in zip(handles[1].standings(), handles[0].standings(), strict=True):
        assert (ours.active, ours.groups, ours.axes) == (other.active, other.groups, other.axes)
        assert (ours.norm, ours.radius) == pytest.approx((other.norm, other.radius), rel=1e-4)
    reports = [projgen.torch.report(each) for each in (model, alone)]
    for ours, other in zip(*(report.rows for report in reports), strict=True):
        assert (ours.zero, ours.outputs, ours.inputs) == (other.zero, other.outputs, other.inputs)
        assert (ours.length, ours.largest) == pytest.approx((other.length, other.largest), rel=1e-4)
    assert sum(row.zero for row in reports[0].rows) > 10
    state = handles[1].state_dict()
    handles[1].load_state_dict(copy.deepcopy(state))
    assert sum(int(whole(mask).sum()) for mask in handles[1].frozen.values()) > 0

    with torch.no_grad():
        if world.rank == 1:
            model[0].weight.to_local()[0] = float("nan")
    words = "left nan in \"?'?0.weight.*rank's shard" if world.rank == 1 else "rank 1 has NaN"
    assert_raises(ValueError, words, handles[1].project)


@check
def what_fsdp_has_gathered_is_told(world: Any) -> None:
    """The root's parameters stay whole after a forward pass without a backward one."""
    from torch.distributed.fsdp import fully_shard

    for options in ({}, {"freeze_zeros": True}):
        model = torch.nn.Sequential(torch.nn.Linear(7, 5))
        fully_shard(model, mesh=world.line)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = projgen.torch.constrain(optimizer, model, {"0": "l1"}, radius="10%", **options)
        handle.project()
        with torch.no_grad():
            model(torch.ones(1, 7))
        assert_raises(RuntimeError, "reshard", handle.project)
        model.reshard()
        handle.project()


@check
def an_fsdp_parameter_cut_by_tensor_parallelism_too(world: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)).double()
    torch.distributed.tensor.parallel.parallelize_module(
        model, world.square["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()}
    )
    fully_shard(model, mesh=world.square["dp"])
    for number, spec in ((0, ROWS), (0, "l1(l1(axis=0))"), (1, ROWS), (1, "l1(l1)")):
        weight = model[number].weight.detach()
        full = weight.full_tensor()
        assert weight.device_mesh.ndim == 2
        x = projgen.build(spec)(weight, 1.0).full_tensor()
        assert float((x - projgen.build(spec, backend="numpy")(full, 1.0)).abs().max()) <= 1e-12


@check_by_two_as_well
def the_example(world: Any) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "fsdp_constrain.py"))["main"]
    main(epochs=1)
    if world.rank == 0:
        printed = rf"\d+ of 50 features are left, on {dist.get_world_size()} ranks\n"
        assert re.fullmatch(printed, world.printed.getvalue())


# The processes


def a_rank_dies(world: Any) -> str:
    """The last, in the middle of a projection; what the others say of it, and after how long."""
    d = placed(random(7, 6), world.line, S[0])
    last = world.rank == dist.get_world_size() - 1

    def dies(*_: Any, **options: Any) -> None:
        os._exit(13)

    started = time.monotonic()
    try:
        with patch.object(wire, "_gather_single", dies if last else wire._gather_single):
            projgen.build(ROWS)(d, 1.0)
    except RuntimeError as error:
        unchanged = torch.equal(d.to_local(), placed(random(7, 6), world.line, S[0]).to_local())
        return f"{type(error).__name__} {unchanged} {time.monotonic() - started:.1f}"
    return "no error"


def take_part(size: int, rank: int, directory: str) -> None:
    """A process: what went wrong in it, by check, goes to a file of its own."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store{size}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    square = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
    line, printed = init_device_mesh("cpu", (size,)), StringIO()
    world = SimpleNamespace(rank=rank, square=square, pair=square["tp"], line=line, printed=printed)
    said: dict[str, str] = {}
    for name, function in CHECKS[size].items():
        sys.stdout = printed
        try:
            with rehearsals():
                function(world)
            said[name] = ""
        except BaseException:
            said[name] = traceback.format_exc()
        finally:
            sys.stdout = sys.__stdout__
        if said[name]:
            break  # the others may be waiting: what comes next would not be the same
    else:
        with rehearsals():
            said["death"] = a_rank_dies(world)
    (Path(directory) / f"{size}-{rank}.json").write_text(json.dumps(said), encoding="utf-8")
    os._exit(0)  # a group that has lost a rank is not taken down in order


def run_ranks(directory: str) -> None:
    """All processes; on Linux they are forked from one that has imported what they need."""

    with rehearsals():  # what is read and rendered the first time
        for spec in ("l1(linf)", "l1(l2)", "l1(l1)", "l0(k=2)"):
            projgen.build(spec)(np.ones((3, 3)), *([] if "k=" in spec else [1.0]))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    for size in WORLDS:
        ranks = [
            context.Process(target=take_part, args=(size, rank, directory)) for rank in range(size)
        ]
        for rank in ranks:
            rank.start()
        deadline = time.monotonic() + 200
        for rank in ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        for rank in ranks:
            rank.kill()
            rank.join()
        codes = [rank.exitcode for rank in ranks]
        (Path(directory) / f"{size}-codes.json").write_text(json.dumps(codes), encoding="utf-8")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each process has written what it says of each check: nothing, if it is well."""
    directory = tmp_path_factory.mktemp("ranks")
    starter = multiprocessing.get_context("spawn").Process(target=run_ranks, args=(str(directory),))
    starter.start()
    starter.join(450)
    if starter.is_alive():
        starter.kill()
        starter.join()
        pytest.fail("the processes have not ended within 450 s")
    return directory


def said(directory: Path, size: int) -> dict[int, dict[str, str]]:
    """What the processes of a world say; the last one has died."""
    files = {rank: directory / f"{size}-{rank}.json" for rank in range(size)}
    return {
        rank: json.loads(file.read_text("utf-8")) for rank, file in files.items() if file.exists()
    }


@pytest.mark.parametrize(
    ("size", "name"), [(size, name) for size in WORLDS for name in CHECKS[size]]
)
def test_all_ranks(size: int, name: str, directory: Path) -> None:
    found = said(directory, size)
    failed = {rank: own[name] for rank, own in found.items() if own.get(name)}
    assert not failed, "\n".join(f"rank {rank}: {text}" for rank, text in failed.items())
    assert all(name in found[rank] for rank in range(size - 1)), "an earlier check failed"


@pytest.mark.parametrize("size", WORLDS)
def test_a_rank_that_dies_is_an_error_on_the_others(size: int, directory: Path) -> None:
    codes = json.loads((directory / f"{size}-codes.json").read_text("utf-8"))
    assert codes == [0] * (size - 1) + [13]
    for own in (said(directory, size)[rank] for rank in range(size - 1)):
        kind, unchanged, seconds = own["death"].split()
        assert kind != "no" and unchanged == "True" and float(seconds) < 50, own["death"]


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "sharded.md").read_text("utf-8")
    assert (ROOT / "examples" / "fsdp_constrain.py").read_text("utf-8") in page


# A sweep for a search


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((7, 6), (0,)),
        ((7, 6), (1,)),
        ((7, 6), (0, 1)),
        ((3, 4, 5), (1,)),
        ((3, 4, 5), (0, 2)),
        ((3, 4, 1), (1,)),
        ((1, 5), (0,)),
        ((5,), (0,)),
        ((0, 5), (0,)),
    ],
)
def test_a_tally(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    groups = tuple(extent for axis, extent in enumerate(shape) if axis not in axes)
    y, thresholds = rng.standard_normal(shape).astype(dtype), np.abs(rng.standard_normal(groups))
    with rehearsals():
        found = [Tally(each, axes).above(thresholds) for each in (y, np.asfortranarray(y))]
    over = np.abs(y.astype(np.float64)) - np.expand_dims(thresholds, axes)
    for sums, counts in found:
        np.testing.assert_allclose(sums, np.maximum(over, 0).sum(axes), rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(counts, (over > 0).sum(axes))


# How a mesh cuts the levels


@pytest.mark.parametrize(
    ("spec", "axes", "level", "joins", "gathers"),
    [
        (ROWS, (0, None), 1, (), [(0, 0)]),
        (ROWS, (1, None), 1, (0,), []),
        (ROWS, (0, 1), 1, (1,), [(0, 0)]),
        (ROWS, (0, 0), 1, (), [(1, 0), (0, 0)]),
        ("l1(axis=1)", (0, None), 0, (), []),
        ("l1(axis=1)", (0, 1), 0, (1,), []),
        ("linf(l1)", (0, None), 0, (0,), []),
        ("l1(l1)", (0, 1), 1, (1,), [(0, 0)]),
        ("l1(l2(l1(axis=2)))", (1, None), 1, (0,), []),
        ("l1(l1(l1(axis=2)))", (1, None), 2, (), [(0, 1)]),
        ("l1(l2(l1(axis=2)))", (2, 0), 2, (0,), [(1, 0)]),
    ],
)
def test_seams(spec: str, axes: Any, level: int, joins: Any, gathers: Any) -> None:
    shape = (6, 8, 4)[: 3 if "axis=2" in spec else 2]
    arm = bind_arm(parse_tree(spec).levels, len(shape), "y", shape)
    seam = find_seam(arm, Sharding(shape, (2, 3), axes))
    assert (seam.level, seam.joins, [*seam.gathers]) == (level, joins, gathers)


def test_l1_in_pieces_beneath_blocks_is_refused() -> None:
    arm = bind_arm(parse_tree("l2(l1(axis=0), axis=1, block=4)").levels, 2, "y", (6, 8))
    with pytest.raises(TypeError, match=r"cut along axis 0, .* without blocks"):
        find_seam(arm, Sharding((6, 8), (2,), (0,)))


def test_a_mesh_of_one_cuts_nothing() -> None:
    arm = bind_arm(parse_tree("l1(l1)").levels, 2, "y", (6, 8))
    seam = find_seam(arm, Sharding((6, 8), (1, 1), (0, 1)))
    assert (seam.level, seam.joins, seam.gathers) == (0, (), ())


@pytest.mark.parametrize("extent", [0, 1, 5, 7, 12])
@pytest.mark.parametrize("mesh", [(2,), (4,), (2, 3)])
def test_spans_are_those_of_torch(extent: int, mesh: tuple[int, ...]) -> None:
    sharding = Sharding((extent,), mesh, (0,) * len(mesh))
    for place in np.ndindex(*mesh):
        piece = torch.arange(extent)
        for ranks, own in zip(mesh, place, strict=True):
            chunks = list(piece.chunk(ranks)) if piece.numel() else []
            piece = chunks[own] if own < len(chunks) else piece[:0]
        start, stop = sharding.span(0, place)
        assert piece.tolist() == list(range(start, stop))
        assert sharding.local_shape(place) == (piece.numel(),)
