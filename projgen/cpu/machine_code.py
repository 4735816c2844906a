"""Machine code without numba: what one process has compiled, the next ones link by LLVM alone.

To import numba takes a process most of a second, and here it has nothing left to compile. An entry
of the cache has the object code of each function that has an address, beside what numba keeps for
itself. Whatever cannot be linked is left to numba.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

SYMBOLS = "symbols.json"  # of an entry: the names of its functions, and theirs in object code

# Compiled functions end with what reports an exception, or frees an array. Kernels have neither:
# this is here to be linked. If it were reached, it would report and return, as numba's would.
_RUNTIME = """
@PyExc_RuntimeError = external global ptr
@text = private constant [29 x i8] c"a kernel raised an exception\\00"
declare i32 @PyGILState_Ensure()
declare void @PyGILState_Release(i32)
declare void @PyErr_SetString(ptr, ptr)
declare double @frexp(double, ptr)
declare double @ldexp(double, i32)

define void @numba_gil_ensure(ptr %state) {
  %held = call i32 @PyGILState_Ensure()
  store i32 %held, ptr %state
  ret void
}
define void @numba_gil_release(ptr %state) {
  %held = load i32, ptr %state
  call void @PyGILState_Release(i32 %held)
  ret void
}
define private ptr @report() {
  %type = load ptr, ptr @PyExc_RuntimeError
  call void @PyErr_SetString(ptr %type, ptr @text)
  ret ptr null
}
define ptr @numba_unpickle(ptr %data, i32 %size, ptr %digest) {
  %none = call ptr @report()
  ret ptr %none
}
define ptr @numba_runtime_build_excinfo_struct(ptr %format, ptr %values) {
  %none = call ptr @report()
  ret ptr %none
}
define i32 @numba_do_raise(ptr %exception) {
  ret i32 0
}
define void @NRT_MemInfo_call_dtor(ptr %array) {
  ret void
}
define void @NRT_Free(ptr %memory) {
  ret void
}
define double @numba_frexp(double %x, ptr %exponent) {
  %y = call double @frexp(double %x, ptr %exponent)
  ret double %y
}
define double @numba_ldexp(double %x, i32 %exponent) {
  %y = call double @ldexp(double %x, i32 %exponent)
  ret double %y
}
"""


@dataclass(frozen=True, slots=True)
class Function:
    """What can be called by its address. Numba's own have an ``address`` as well."""

    address: int


class Linked:
    """A module as machine code: its functions by name, and the ``__file__`` of its source."""

    def __init__(self, file: str, functions: Mapping[str, Function], code: list[Any]) -> None:
        self.__file__ = file
        self.__dict__.update(functions)
        self._code = code  # which is unloaded with its trackers


def is_disabled() -> bool:
    """Whether numba is told to compile nothing."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"


@cache
def host() -> tuple[str, str, str]:
    """The machine that code is made for: its triple, and the CPU's name and features."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features().flatten()
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), features


def keep(module: ModuleType, directory: Path) -> None:
    """Write the object code of a module that numba has just compiled."""
    compiled: Any = import_module("numba.core.ccallback").CFunc
    symbols = {}
    functions: dict[str, Any] = vars(module)
    for name, function in functions.items():
        if isinstance(function, compiled):
            _, _, (code, _) = function._library.serialize_using_object_code()
            (directory / f"{name}.o").write_bytes(code)
            symbols[name] = function._wrapper_name
    if symbols:
        (directory / SYMBOLS).write_text(json.dumps(symbols, indent=1) + "\n")


def link(file: str, entry: Path) -> Linked | None:
    """The module `file` of an entry whose bytes are verified; None if that takes numba.

    RuntimeError where LLVM refuses the code.
    """
    if sys.platform == "win32" or is_disabled():
        return None
    if not (entry / SYMBOLS).exists():
        return None
    symbols: dict[str, str] = json.loads((entry / SYMBOLS).read_bytes())
    codes = [_link((entry / f"{name}.o").read_bytes(), symbols[name]) for name in symbols]
    at = [code[symbol] for code, symbol in zip(codes, symbols.values(), strict=True)]
    return Linked(file, dict(zip(symbols, map(Function, at), strict=True)), codes)


def _link(code: bytes, symbol: str) -> Any:
    """The tracker of some object code, which knows the address of its `symbol`."""
    import llvmlite.binding as llvm

    jit, runtime = _linker()
    library = llvm.JITLibraryBuilder().add_object_img(code).export_symbol(symbol)
    library.add_jit_library(runtime.name).add_current_process()
    return library.link(jit, symbol)


@cache
def _linker() -> tuple[Any, Any]:
    """LLVM's linker, and the tracker of `_RUNTIME`."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    jit = llvm.create_lljit_compiler(machine, use_jit_link=True, suppress_errors=True)
    library = llvm.JITLibraryBuilder().add_ir(_RUNTIME).add_current_process()
    return jit, library.link(jit, "runtime")


__all__ = ["SYMBOLS", "Function", "Linked", "host", "is_disabled", "keep", "link"]
