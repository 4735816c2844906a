"""Numba, told to do no more for a kernel than it needs: that is half of what it does.

*Once.* Numba links the code of a function into that of its callers, but only after all of LLVM has
worked on it and made machine code of it by itself; so functions within functions go through that
several times. Nobody else calls the functions of a kernel. Here LLVM cleans them up, and does the
rest when all that a kernel calls is linked into it: the code it makes is as good.

*What is not asked for.* Numba's array functions import SciPy's linear algebra, to see if they can;
those that need it try again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from numba import extending
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.np import linalg


class _Code(JITCodeLibrary):
    """LLVM's code of a function, to be linked into that of others."""

    codegen = SimpleNamespace(set_env=lambda *_: None)  # there is no machine code to tell of it

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _Callee(Compiler):
    def compile_extra(self, function: Callable[..., Any]) -> Any:
        codegen = self.state["targetctx"].codegen()
        self.state["library"] = _Code(codegen, function.__qualname__)
        return super().compile_extra(function)


@contextmanager
def lean(module: str) -> Iterator[None]:
    """For the functions of a module that is executed meanwhile, and imports `register_jitable`.

    Other threads may import it meanwhile as well: for what they register, nothing changes.
    """
    _import_arrays()
    register = extending.register_jitable

    def registered(*function: Callable[..., Any], **options: Any) -> Any:
        def decorate(function: Callable[..., Any]) -> Any:
            given = dict(options)
            if function.__module__ == module:
                given |= {"pipeline_class": _Callee, "no_cfunc_wrapper": True}
            return register(**given)(function) if given else register(function)

        return decorate(*function) if function else decorate

    extending.register_jitable = registered
    try:
        yield
    finally:
        extending.register_jitable = register


def _import_arrays() -> None:
    if "scipy" not in sys.modules:  # which numba has imported, where it is installed
        return
    ensure_blas = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        linalg.ensure_blas = ensure_blas


__all__ = ["lean"]
