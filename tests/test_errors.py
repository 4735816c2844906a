"""What a call refuses: with which words, and without touching `out`."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from support import Array, rehearsals

import projgen
from projgen.misplaced import OF_BUILD
from projgen.norms import CHAINED

SPEC = "l1(linf(axis=1))"
SHAPE = (3, 4)


def with_value(value: float, dtype: Any = np.float32) -> Array:
    y = np.arange(12, dtype=dtype).reshape(SHAPE)
    y[1, 2] = value
    return y


GOOD = with_value(1.0)


def overlapping(memory: Array) -> tuple[Array, Array]:
    """Two views of `memory` that share some elements."""
    return memory[:12].reshape(SHAPE), memory[1:13].reshape(SHAPE)


def self_overlapping() -> Array:
    return np.lib.stride_tricks.as_strided(np.zeros(12, np.float32), SHAPE, (4, 4))


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


class OnGpu:
    __cuda_array_interface__: ClassVar[dict[str, Any]] = {
        "shape": SHAPE,
        "typestr": "<f4",
        "data": (0, False),
        "version": 3,
    }


class Model:
    """What models of PyTorch have, and arrays do not."""

    def named_parameters(self) -> list[Any]:
        return []


def refusals() -> dict[str, Callable[[], Any]]:
    """Calls that must fail; each has its own name in the snapshot."""
    p = projgen.build(SPEC)
    rows, reference = projgen.build("l1(axis=1)"), projgen.build(SPEC, backend="numpy")
    y = GOOD
    y_over, out_over = overlapping(np.ones(13, np.float32))
    return {
        # the array
        "NaN": lambda: p(with_value(np.nan), 1.0),
        "inf": lambda: p(with_value(np.inf), 1.0),
        "-inf": lambda: p(with_value(-np.inf, np.float64), 1.0),
        "NaN, infinite radius": lambda: p(with_value(np.nan), np.inf),
        "NaN, radius 0": lambda: p(with_value(np.nan), 0.0),
        "NaN in place": lambda: p(z := with_value(np.nan), 1.0, out=z),
        "NaN in Fortran order": lambda: p(np.asfortranarray(with_value(np.nan)), 1.0),
        "NaN for the reference": lambda: reference(with_value(np.nan), 1.0),
        "NaN for the norm": lambda: p.norm(with_value(np.nan)),
        "integers": lambda: p(np.ones(SHAPE, int), 1.0),
        "booleans": lambda: p(np.ones(SHAPE, bool), 1.0),
        "complex": lambda: p(np.ones(SHAPE, complex), 1.0),
        "float8": lambda: p(np.ones(SHAPE, ml_dtypes.float8_e4m3fn), 1.0),
        "objects": lambda: p(np.ones(SHAPE, object), 1.0),
        "byte-swapped": lambda: p(y.astype(y.dtype.newbyteorder()), 1.0),
        "dates": lambda: p(np.zeros(SHAPE, "M8[s]"), 1.0),
        "records": lambda: p(np.zeros(SHAPE, [("a", "f4")]), 1.0),
        "masked": lambda: p(np.ma.masked_array(y, y > 3), 1.0),
        "a string": lambda: p("l1", 1.0),
        "None": lambda: p(None, 1.0),
        "a dict": lambda: p({"a": y, "b": y}, 1.0),
        "a model": lambda: p(Model(), 1.0),
        "a list of strings": lambda: p([["a"]], 1.0),
        "a list of integers": lambda: p([[1, 2]], 1.0),
        "a GPU array": lambda: projgen.build(SPEC, backend="cpu")(OnGpu(), 1.0),
        "integers for the norm": lambda: p.norm(np.ones(SHAPE, int)),
        # its rank
        "rank 1": lambda: p(np.ones(3, np.float32), 1.0),
        "rank 0": lambda: p(np.float32(3), 1.0),
        "rank 1 for the norm": lambda: p.norm(np.ones(3)),
        "rank 1 for active": lambda: p.active(np.ones(3)),
        "axis out of range": lambda: projgen.project(y, "l1(linf(axis=2))", 1.0),
        # the radius
        "negative": lambda: p(y, -1.0),
        "negative integer": lambda: p(y, -1),
        "NaN radius": lambda: p(y, float("nan")),
        "-inf radius": lambda: p(y, -np.inf),
        "no number": lambda: p(y, "1"),
        "None radius": lambda: p(y, None),
        "complex radius": lambda: p(y, 1j),
        "bool radius": lambda: p(y, True),
        "an array without a batch": lambda: p(y, [1.0, 2.0, 3.0]),
        "a wrong shape": lambda: rows(y, [1.0, 2.0]),
        "too many axes": lambda: rows(y, np.ones((3, 1))),
        "one negative of many": lambda: rows(y, [1.0, -2.0, 1.0]),
        "one NaN of many": lambda: rows(y, [1.0, np.nan, 1.0]),
        # out
        "out of another shape": lambda: p(y, 1.0, out=np.ones((4, 3), np.float32)),
        "out of another dtype": lambda: p(y, 1.0, out=np.ones(SHAPE)),
        "out of integers": lambda: p(y, 1.0, out=np.ones(SHAPE, np.int32)),
        "read-only out": lambda: p(y, 1.0, out=read_only(y)),
        "read-only in place": lambda: p(z := read_only(y), 1.0, out=z),
        "overlapping": lambda: p(y_over, 1.0, out=out_over),
        "overlapping itself": lambda: p(y, 1.0, out=self_overlapping()),
        "broadcast out": lambda: p(y, 1.0, out=np.broadcast_to(np.float32(1), SHAPE)),
        "a list as out": lambda: p(y, 1.0, out=y.tolist()),
        "a number as out": lambda: p(y, 1.0, out=3.0),
        "upside down": lambda: p(z := y.copy(), 1.0, out=z[::-1]),
        # building
        "an unknown norm": lambda: projgen.build("l1(linff)"),
        "no string": lambda: projgen.build(b"l1"),
        "backend": lambda: projgen.build(SPEC, backend="gpu"),
        "cuda": lambda: projgen.build(SPEC, backend="cuda")(y, 1.0),
        "no thread": lambda: projgen.build(SPEC, threads=0),
        "half a thread": lambda: projgen.build(SPEC, threads=1.5),
        # arguments in the wrong place
        "an argument of build": lambda: p(y, 1.0, threads=2),
        "for project": lambda: projgen.project(y, SPEC, 1.0, backend="numpy"),
        "for the norm": lambda: p.norm(y, exact=True),
        "an argument of build, where there is no radius": lambda: projgen.build("l0(k=2)")(
            y, check_finite=False
        ),
        "almost an argument of build": lambda: p(y, 1.0, thread=2),
        "almost an argument of the call": lambda: p(y, 1.0, return_inf=True),
        "a radius for the norm": lambda: p.norm(y, radius=1.0),
        "a radius for build": lambda: projgen.build(SPEC, radius=1.0),  # type: ignore[arg-type]
        "out for build": lambda: projgen.build(SPEC, out=y),  # type: ignore[arg-type]
        "info for build": lambda: projgen.build(SPEC, return_info=True),  # type: ignore[arg-type]
        "weights for build": lambda: projgen.build("l1(w=v)", v=y),  # type: ignore[arg-type]
        "almost an argument, for build": lambda: projgen.build(SPEC, thread=2),  # type: ignore[arg-type]
        "nothing that build knows": lambda: projgen.build(SPEC, depth=2),  # type: ignore[arg-type]
        # plans
        "an empty plan": lambda: p.plan((0, 3)),
        "a plan of integers": lambda: p.plan(SHAPE, int),
        "a plan of one axis": lambda: p.plan((3,)),
        "a plan of an array": lambda: p.plan(y),
        "extents one by one": lambda: p.plan(3, 4),
        "source of an array": lambda: p.source(y),
        "half an extent": lambda: p.plan((3, 4.5)),
        "a negative shape": lambda: p.plan((-3, 4)),
        "source of rank 0": lambda: p.source(0),
        "an assignment": lambda: setattr(p, "spec", "l1"),
        "a deletion": lambda: delattr(p, "_tree"),
    }


def test_the_arguments_of_build_are_known() -> None:
    parameters = inspect.signature(projgen.build).parameters.values()
    assert tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) == OF_BUILD


def test_messages(snapshot: Callable[[str, str], None]) -> None:
    lines = []
    with rehearsals():
        for name, call in refusals().items():
            try:
                result = call()
            except (ValueError, TypeError, AttributeError) as error:
                lines.append(f"{name}: {type(error).__name__}: {error}\n")
            else:
                pytest.fail(f"{name}: nothing was refused, the result is {result!r}")
    snapshot("call_errors", "\n".join(lines))


KINDS = {
    TypeError: [
        "integers", "booleans", "complex", "float8", "masked", "a string", "None", "byte-swapped",
        "no number", "None radius", "bool radius", "a list as out", "no string", "a GPU array",
    ],
    projgen.SpecError: ["rank 1", "rank 0", "axis out of range", "an unknown norm"],
    ValueError: [
        "NaN", "inf", "negative", "NaN radius", "a wrong shape", "read-only out", "overlapping",
        "out of another shape", "out of another dtype", "overlapping itself", "backend",
    ],
    AttributeError: ["an assignment", "a deletion"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names]
)
def test_kinds(kind: type[Exception], name: str) -> None:
    with rehearsals(), pytest.raises(kind):
        refusals()[name]()


BAD_INPUT = {
    "NaN": (with_value(np.nan), 1.0),
    "inf": (with_value(np.inf), 1.0),
    "a wrong dtype": (GOOD.astype(np.float64), 1.0),
    "integers": (GOOD.astype(np.int32), 1.0),
    "a wrong shape": (np.ones((4, 3), np.float32), 1.0),
    "a negative radius": (GOOD, -1.0),
    "a NaN radius": (GOOD, np.nan),
    "a radius of a wrong shape": (GOOD, np.ones(3)),
    "a string": ("y", 1.0),
}


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("name", BAD_INPUT)
def test_out_is_untouched(name: str, backend: Any) -> None:
    y, radius = BAD_INPUT[name]
    p = projgen.build(SPEC, backend=backend)
    for out in (
        np.full(SHAPE, 7, np.float32),
        np.full(SHAPE[::-1], 7, np.float32).T,
        np.full((3, 8), 7, np.float32)[:, ::2],
        np.full(SHAPE, 7, np.float32)[::-1],
    ):
        with rehearsals(), pytest.raises((ValueError, TypeError)):
            p(y, radius, out=out)
        assert np.all(out == 7)


@pytest.mark.parametrize("name", ["NaN", "inf"])
def test_in_place_nothing_is_written(name: str) -> None:
    y = BAD_INPUT[name][0].copy()
    with rehearsals():
        for view in (y, y[::-1], y.T):
            before = y.tobytes()
            with pytest.raises(ValueError, match="nothing was written"):
                projgen.project(view, "l1(linf)", 1.0, out=view)
            assert y.tobytes() == before


@pytest.mark.parametrize("last", [np.nan, np.inf])
def test_one_bad_value_at_the_end_of_a_large_array(last: float) -> None:
    """Compiled: checked in the first sweep, by the same code as the norm."""
    for norm in CHAINED:
        y = np.ones((300, 400), np.float32)
        y[-1, -1] = last
        out = np.full_like(y, 7)
        with pytest.raises(ValueError, match=r"at index \(299, 399\)"):
            projgen.project(y, f"l1({norm})", 1.0, out=out)
        assert np.all(out == 7)


@pytest.mark.parametrize("radius", [1e308, 1e-320])
def test_floating_point_errors_of_the_caller(radius: float) -> None:
    """Entries out of range are scaled one by one, and so is the radius: not a matter of y's."""
    y = np.ones((3, 4))
    y[0], y[1] = 1e-300, 1e300
    p = projgen.build("l2(axis=1)")
    with rehearsals():
        expected = p(y, radius)
        with np.errstate(all="raise"):
            assert np.array_equal(p(y, radius, out=np.full_like(y, 7)), expected)


def test_overlaps_of_every_kind() -> None:
    memory = np.arange(40, dtype=np.float32)
    y = memory[:12].reshape(SHAPE)
    refused = [
        memory[11:23].reshape(SHAPE),  # one element
        memory[:12].reshape(4, 3).T,  # all, in other places
        y[:, ::-1],
        memory[:24:2].reshape(SHAPE),
        np.lib.stride_tricks.as_strided(memory, SHAPE, (16, 8)),
    ]
    allowed = [memory[12:24].reshape(SHAPE), memory[12:36:2].reshape(SHAPE), y]
    with rehearsals():
        for out in refused:
            before = memory.tobytes()
            with pytest.raises(ValueError, match=r"overlap|share memory"):
                projgen.project(y, SPEC, 1.0, out=out)
            assert memory.tobytes() == before
        for out in allowed:
            assert projgen.project(y, SPEC, 1.0, out=out) is out


def test_overlapping_itself_after_the_norm() -> None:
    """A known layout is still checked, before it is written to."""
    y = self_overlapping()
    p = projgen.build(SPEC)
    with rehearsals():
        p.norm(y)
        with pytest.raises(ValueError, match="share memory"):
            p(y, 1.0, out=y)


def test_a_second_call_checks_as_the_first_did() -> None:
    p = projgen.build(SPEC)
    y, out = GOOD.copy(), np.full(SHAPE, 7, np.float32)
    with rehearsals():
        for _ in range(2):
            p(y, 1.0)
            p(y, 1.0, out=out)
            p(y, 1.0, out=y)
        before = y.tobytes()
        memory = np.zeros(13, np.float32)
        z, overlap = overlapping(memory)
        with pytest.raises(ValueError, match="overlap"):
            p(z, 1.0, out=overlap)
        for bad in (-1.0, float("nan"), np.float64(-1)):
            with pytest.raises(ValueError, match="radius"):
                p(y, bad, out=y)
        for given in (with_value(np.nan), read_only(y)):
            kept = given.tobytes()
            with pytest.raises(ValueError, match=r"nothing was written|read-only"):
                p(given, 1.0, out=given)
            assert given.tobytes() == kept
        with pytest.raises(ValueError, match="read-only"):
            p(y, 1.0, out=read_only(y))
        moved = np.frombuffer(bytearray(b"\0" + y.tobytes()), np.uint8)[1:].view(np.float32)
        assert np.array_equal(p(moved.reshape(SHAPE), 1.0), p(y, 1.0))
        assert y.tobytes() == before


def test_without_the_finite_check_a_bad_entry_becomes_nan() -> None:
    p = projgen.build("l1(axis=1)", check_finite=False)
    y = with_value(np.nan)
    with rehearsals():
        x = p(y, 1.0)
        good = projgen.build("l1(axis=1)")(y[[0, 2]], 1.0)
        assert np.isnan(p(y[1:2], 1.0)).all()
    assert np.isnan(x[1]).all()
    assert np.array_equal(x[[0, 2]], good)
