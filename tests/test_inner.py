"""Functions inside a kernel are linked into it, and have no machine code of their own."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from numba.core.registry import cpu_target
from support import bits

from projgen.check import parse_tree
from projgen.compiler import compile_tree
from projgen.cpu import call, inner, load

CODEGEN = cpu_target.target_context.codegen()


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what machine code is made of."""
    names: list[str] = []
    add = CODEGEN._add_module
    monkeypatch.setattr(
        CODEGEN, "_add_module", lambda module: (names.append(module.name), add(module))[1]
    )
    return names


def test_kernels_are_the_same_with_less_work(
    coded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_tree(parse_tree("l1(l2(axis=0))"), (60, 70), "float64")
    y = np.random.default_rng(0).standard_normal((60, 70))
    results, counts = [], []
    for way in (inner.linked_only, lambda source: nullcontext()):
        monkeypatch.setattr(load, "linked_only", way)
        coded.clear()
        module = load.load(compiled.source + f"# {len(counts)}\n", persist=False)
        counts.append(list(coded))
        monkeypatch.setattr(call, "load_kernel", lambda compiled, module=module: module)
        x = np.empty_like(y)
        ready = call.Call(compiled, threads=1)
        assert ready.project(y.ctypes.data, x.ctypes.data, 3.0) == ready.PROJECTED
        results.append(bits(x))
    assert results[0] == results[1]
    few, all_of_them = counts
    assert "project" in few
    assert not {"aggregate_0", "aggregate_1", "project_1", "draw"} & set(few)
    assert {"aggregate_0", "aggregate_1", "project_1", "draw"} <= set(all_of_them)


def test_numba_is_left_as_it_was() -> None:
    before = CODEGEN._library_class
    with pytest.raises(ZeroDivisionError), inner.linked_only(""), inner.linked_only(""):
        assert CODEGEN._library_class is not before
        raise ZeroDivisionError
    assert CODEGEN._library_class is before
    assert "get_executable" not in vars(cpu_target.target_context)


def test_another_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose libraries have other steps goes its own way."""
    other: Any = type("Library", (), {})
    monkeypatch.setattr(CODEGEN, "_library_class", other)
    with inner.linked_only("@register_jitable\ndef f(x):\n    pass\n"):
        assert CODEGEN._library_class is other
