"""What numba is told to leave out, when it compiles a kernel."""

from __future__ import annotations

import ctypes
import gc
import logging
import subprocess
import sys

import numba
import pytest
from numba import extending
from numba.core.codegen import JITCodeLibrary

from projgen.cpu import compiling
from projgen.cpu.load import load

KERNEL = '''\
"""x + {more} by functions within functions."""
from numba import cfunc, types
from numba.extending import register_jitable

@register_jitable
def one(x):
    return x + 1

@register_jitable(fastmath=True)
def several(x):
    for _ in range({more}):
        x = one(x)
    return x

@cfunc(types.int64(types.int64), cache=True)
def project(x):
    return several(x)
'''
CALL = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


def result(more: int) -> int:
    module = load(KERNEL.format(more=more), persist=False)
    return int(CALL(module.project.address)(5))


def test_machine_code_is_made_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = []
    make = JITCodeLibrary._finalize_specific

    def counted(library: JITCodeLibrary) -> None:
        made.append(library.name)
        make(library)

    result(1)  # and with it numba's own functions
    monkeypatch.setattr(JITCodeLibrary, "_finalize_specific", counted)
    with caplog.at_level(logging.DEBUG, "projgen"):
        assert result(2) == 7
    assert made == ["project"]
    assert "in full" not in caplog.text


def test_another_numba_compiles_in_full(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(compiling._Code, "codegen")
    monkeypatch.setattr(compiling._Code, "_finalized", property(lambda library: library.gone))
    with caplog.at_level(logging.DEBUG, "projgen"):
        assert result(3) == 8
    assert "in full" in caplog.text


def test_numba_is_left_as_it_was() -> None:
    register = extending.register_jitable
    for collects in (True, False):
        (gc.enable if collects else gc.disable)()
        try:
            assert result(4 + collects) == 9 + collects
            assert gc.isenabled() == collects
        finally:
            gc.enable()
    assert extending.register_jitable is register


def test_functions_of_others_are_compiled_as_ever() -> None:
    """Of a thread that imports `register_jitable` while a kernel is compiled."""
    with compiling.lean("projgen_kernel_of_tests"):
        from numba.extending import register_jitable

    @register_jitable
    def told(x):  # type: ignore[no-untyped-def]
        if x < 0:
            raise ValueError("below 0", x)
        return x

    with pytest.raises(ValueError, match="below 0"):
        numba.njit(lambda x: told(x))(-1)


def test_linear_algebra_is_there_for_those_who_ask() -> None:
    pytest.importorskip("scipy")
    script = """
import sys
import numba, numpy as np
from projgen.cpu.load import load
load(KERNEL, persist=False)
assert "scipy.linalg" not in sys.modules
y = np.eye(3)
assert (numba.njit(lambda a: np.dot(a, a))(y) == y).all()
assert "scipy.linalg" in sys.modules
"""
    script = f"KERNEL = {KERNEL.format(more=1)!r}\n{script}"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
