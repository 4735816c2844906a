"""Where arrays lie: any strides of input and output, in place, apart, and on top of each other."""

from collections.abc import Callable, Iterator
from itertools import permutations, product

import numpy as np
import pytest
from support import Array, assert_projected, bits, lay_out, norm, rehearsals

import projgen

SPEC = "l1(linf(axis=1))"
SHAPE = (40, 50)


def copied(values: Array) -> Array:
    return values.copy()


def fortran(values: Array) -> Array:
    return np.asfortranarray(values)


def transposed(values: Array) -> Array:
    return lay_out(values, (1, 0), (1, 1))


def every_other(values: Array) -> Array:
    return lay_out(values, (0, 1), (2, 2))


def every_other_column(values: Array) -> Array:
    return lay_out(values, (0, 1), (1, 2))


def gaps_between_rows(values: Array) -> Array:
    return lay_out(values, (0, 1), (2, 1))


def upside_down(values: Array) -> Array:
    return lay_out(values, (0, 1), (-1, 1))


def backwards(values: Array) -> Array:
    return lay_out(values, (1, 0), (-1, -1))


def unaligned(values: Array) -> Array:
    memory = np.zeros(values.nbytes + 1, np.uint8)
    view = memory[1:].view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


def records(values: Array) -> Array:
    """A field of records: steps that are no multiple of an element."""
    table = np.zeros(values.shape, [("flag", "u1"), ("value", values.dtype)])
    table["value"] = values
    return table["value"]


LAYOUTS = [
    copied,
    fortran,
    transposed,
    every_other,
    every_other_column,
    gaps_between_rows,
    upside_down,
    backwards,
    unaligned,
    records,
]
COMPILED = [copied, every_other, backwards, unaligned]


def repeated_rows(values: Array) -> Array:
    return lay_out(values, (0, 1), (0, 1))


def repeated_columns(values: Array) -> Array:
    return lay_out(values, (0, 1), (1, 0))


def one_number(values: Array) -> Array:
    return lay_out(values, (0, 1), (0, 0))


def sliding(values: Array) -> Array:
    return np.lib.stride_tricks.sliding_window_view(values.ravel(), values.shape[1])[
        : values.shape[0]
    ]


def read_only(values: Array) -> Array:
    values = values.copy()
    values.flags.writeable = False
    return values


@pytest.fixture
def values() -> Array:
    return np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


@pytest.fixture
def rehearsed() -> Iterator[None]:
    with rehearsals(BLOCK_BYTES=1024):
        yield


LayOut = Callable[[Array], Array]


@pytest.mark.usefixtures("rehearsed")
class TestRehearsed:
    @pytest.mark.parametrize(
        "lay", [*LAYOUTS, repeated_rows, repeated_columns, one_number, sliding, read_only]
    )
    @pytest.mark.parametrize("spec", [SPEC, "l1(linf)", "linf(l1(axis=0))", "l1(axis=0)", "l1"])
    def test_input(self, lay: LayOut, spec: str, values: Array) -> None:
        y = lay(values)
        before = bits(y)
        radius = 0.3 * norm(spec, y)
        assert_projected(spec, y, radius, projgen.project(y, spec, radius))
        assert bits(y) == before

    @pytest.mark.parametrize("lay_out_y", LAYOUTS)
    @pytest.mark.parametrize("lay_out_x", LAYOUTS)
    def test_out(self, lay_out_y: LayOut, lay_out_x: LayOut, values: Array) -> None:
        y, out = lay_out_y(values), lay_out_x(np.zeros(SHAPE, np.float32))
        assert projgen.project(y, SPEC, 7.0, out=out) is out
        assert_projected(SPEC, y, 7.0, out)

    @pytest.mark.parametrize("lay", LAYOUTS)
    @pytest.mark.parametrize("spec", [SPEC, "l1(l2)", "l2(l1(axis=0))", "l1(axis=1)"])
    def test_in_place(self, lay: LayOut, spec: str, values: Array) -> None:
        y = lay(values)
        radius = 0.3 * norm(spec, values)
        assert projgen.project(y, spec, radius, out=y) is y
        assert_projected(spec, values, radius, y)

    @pytest.mark.parametrize("lay", LAYOUTS)
    def test_inside_the_ball_all_bits_are_kept(self, lay: LayOut, values: Array) -> None:
        values[::3] = -0.0
        y, out = lay(values), lay(np.zeros(SHAPE, np.float32))
        radius = float(norm(SPEC, values)) * 1.001
        assert bits(projgen.project(y, SPEC, radius)) == bits(values)
        assert bits(projgen.project(y, SPEC, radius, out=out)) == bits(values)
        assert bits(projgen.project(y, SPEC, radius, out=y)) == bits(values)

    @pytest.mark.parametrize("order", list(permutations(range(4))))
    def test_four_axes_in_every_order(self, order: tuple[int, ...]) -> None:
        rng = np.random.default_rng(2)
        p = projgen.build("l1(linf(axis=(0, 2)), axis=3)")
        for steps in product((1, -1, 2), repeat=4):
            y = lay_out(rng.standard_normal((3, 4, 2, 20)), order, steps)
            radii = norm(p.spec, y) * [0.1, 0.5, 2.0, 0.0]
            assert_projected(p.spec, y, radii, p(y, radii))
            np.testing.assert_allclose(p.norm(y), norm(p.spec, y), rtol=1e-13)

    def test_the_result_lies_in_memory_as_the_input_does(self, values: Array) -> None:
        for lay in (copied, fortran, transposed):
            assert projgen.project(lay(values), SPEC, 1.0).strides == lay(values).strides

    def test_a_part_of_an_array_leaves_the_rest_alone(self, values: Array) -> None:
        whole = np.full((50, 60), 9.0, np.float32)
        part = whole[5:45, 7:57]
        part[...] = values
        projgen.project(part, SPEC, 3.0, out=part)
        assert_projected(SPEC, values, 3.0, part)
        whole[5:45, 7:57] = 9.0
        assert np.all(whole == 9.0)

    def test_out_between_the_elements_of_the_input(self, values: Array) -> None:
        """Their ranges in memory overlap, and no element does."""
        memory = np.zeros((*SHAPE, 2), np.float32)
        y, out = memory[..., 0], memory[..., 1]
        y[...] = values
        projgen.project(y, SPEC, 3.0, out=out)
        assert_projected(SPEC, values, 3.0, out)
        assert bits(y) == bits(values)


@pytest.mark.parametrize("lay", COMPILED)
def test_compiled(lay: LayOut, values: Array) -> None:
    y = lay(values)
    x = projgen.project(y, "l1(linf)", 7.0)
    assert_projected("l1(linf)", values, 7.0, x)
    out = copied(values)
    projgen.project(y, "l1(linf)", 7.0, out=out)
    assert_projected("l1(linf)", values, 7.0, out)
    projgen.project(y, "l1(linf)", 7.0, out=y)
    assert_projected("l1(linf)", values, 7.0, y)


@pytest.mark.usefixtures("rehearsed")
@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("l1", (0,)),
        ("l1(linf)", (0, 5)),
        ("l1(linf)", (5, 0)),
        ("l1(linf(axis=1))", (0, 0, 3)),
        ("l1(axis=1)", (0, 4)),
        ("l2(axis=1)", (4, 0)),
    ],
)
def test_no_elements(spec: str, shape: tuple[int, ...]) -> None:
    y = np.zeros(shape, np.float32)
    p = projgen.build(spec)
    x = p(y, 1.0)
    assert (x.shape, x.dtype) == (shape, np.float32)
    out = np.zeros(shape, np.float32)
    assert p(y, 0.0, out=out) is out
    assert np.all(p.norm(y) == 0)
    assert np.shape(p.norm(y)) == np.shape(norm(spec, y))
    assert not np.any(p.active(y))


@pytest.mark.usefixtures("rehearsed")
@pytest.mark.parametrize("shape", list(product((1, 6), repeat=4)))
@pytest.mark.parametrize(
    "spec",
    [
        "l1",
        "linf(l2)",
        "l1(linf(axis=(1, 3)))",
        "l1(l2(l1))",
        "l1(l1(axis=2), axis=0)",
        "l2(axis=1)",
    ],
)
def test_axes_of_length_one(spec: str, shape: tuple[int, ...]) -> None:
    y, p = np.random.default_rng(3).standard_normal(shape), projgen.build(spec)
    for view in (y, y.T.copy().T, y[::-1, :, ::-1]):
        radius = 0.4 * norm(spec, view)
        assert_projected(spec, view, radius, p(view, radius))
        np.testing.assert_allclose(p.norm(view), norm(spec, view), rtol=1e-13)
