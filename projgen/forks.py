"""Forks wait for what a child could not finish, while another thread is at it.

A forked child has the forking thread alone. What another thread was importing stays half imported
there, its lock held for ever, and so does the compiler's. Between the first lines of a call and the
last nothing is left half done: so calls are `whole`, and a fork waits until none is in progress
and keeps new ones from beginning. A thread that forks may call meanwhile, in a signal's handler or
in a finaliser: whoever waited for it would wait for ever.
"""

from __future__ import annotations

import logging  # noqa: F401  (hooks run last in, first out: ours has to be done before its lock)
import os
import threading
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import ParamSpec, TypeVar

PATIENCE = 60.0  # seconds that a fork waits at most: a child that may hang beats a parent that does

_lock = threading.RLock()
_gate = threading.Condition(_lock)
_calling: dict[int, int] = {}  # threads that are in a call, and how deep in calls within calls
_forking: set[int] = set()  # threads that want to fork

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
            if _forking:
                _gate.wait_for(_nobody_else_forks)
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
            if _forking:
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
    return not _forking - {threading.get_ident()}


def _nobody_else_calls() -> bool:
    return not _calling.keys() - {threading.get_ident()}


def _before() -> None:
    _lock.acquire()
    _forking.add(threading.get_ident())
    _gate.wait_for(_nobody_else_calls, PATIENCE)


def _in_parent() -> None:
    _forking.discard(threading.get_ident())
    _gate.notify_all()
    _lock.release()


def _in_child() -> None:
    """Other threads, and what they hold and wait for, do not exist here."""
    global _lock, _gate
    _lock = threading.RLock()
    _gate = threading.Condition(_lock)
    _forking.clear()
    for thread in _calling.keys() - {threading.get_ident()}:
        del _calling[thread]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
