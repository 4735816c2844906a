"""Forks wait for what a child could not finish, while another thread is at it.

A forked child has the forking thread alone. What another thread was importing stays half imported
there, its lock held for ever, and so does the compiler's. Between the first lines of a call and the
last nothing is left half done: so calls are `whole`, and a fork waits until none is in progress
and keeps new ones from beginning. A thread that forks may call meanwhile, in a signal's handler or
in a finaliser: whoever waited for it would wait for ever. A signal's handler that raises ends a
hook where it is, so what must not be left out is done by functions that no signal interrupts.
"""

from __future__ import annotations

import logging  # noqa: F401  (hooks run last in, first out: ours has to be done before its lock)
import os
import threading
from collections.abc import Callable
from functools import partial, wraps
from types import TracebackType
from typing import ParamSpec, TypeVar

PATIENCE = 60.0  # seconds that a fork waits at most: a child that may hang beats a parent that does
LOOK = 1.0  # seconds after which a call that waits looks again, if a fork's hook was interrupted

_lock = threading.RLock()
_gate = threading.Condition(_lock)
_calling: dict[int, int] = {}  # threads that are in a call, and how deep in calls within calls
_forks: list[None] = []  # one for each fork that is under way
_forking: set[int] = set()  # the threads that fork, and perhaps one whose hook was interrupted

P = ParamSpec("P")
R = TypeVar("R")


class Whole:
    """A context that no other thread's fork cuts in half."""

    __slots__ = ()

    def __enter__(self) -> None:
        me = threading.get_ident()
        if me in _calling:
            _calling[me] += 1
            return
        with _lock:
            while _forks and not _nobody_else_forks():
                _gate.wait(LOOK)
            _calling[me] = 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        me = threading.get_ident()
        if _calling[me] > 1:
            _calling[me] -= 1
            return
        with _lock:
            del _calling[me]
            if _forks:
                _gate.notify_all()


whole = Whole()


def wholly(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose calls are `whole`."""

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        with whole:
            return function(*args, **named)

    return call


def _nobody_else_forks() -> bool:
    return len(_forks) <= (threading.get_ident() in _forking)


def _nobody_else_calls() -> bool:
    return not _calling.keys() - {threading.get_ident()}


def _wait() -> None:
    """Until nobody else calls; whoever wants to waits for the fork, which is known already."""
    with _lock:
        _forking.add(threading.get_ident())
        _gate.wait_for(_nobody_else_calls, PATIENCE)


def _wake() -> None:
    with _lock:
        _forking.discard(threading.get_ident())
        _gate.notify_all()


def _in_child() -> None:
    """Other threads, and what they hold and wait for, do not exist here."""
    global _lock, _gate
    _lock = threading.RLock()
    _gate = threading.Condition(_lock)
    _forking.clear()
    for thread in _calling.keys() - {threading.get_ident()}:
        del _calling[thread]


if hasattr(os, "register_at_fork"):  # before: the last one first; after: the first one first
    os.register_at_fork(after_in_parent=_forks.pop, after_in_child=_forks.clear)
    os.register_at_fork(before=_wait, after_in_parent=_wake, after_in_child=_in_child)
    os.register_at_fork(before=partial(_forks.append, None))
