"""The team: threads of our own that share a kernel's blocks.

Numba's threading layers abort the process, or kill a forked child, when used in the wrong company
(two Python threads at once, a DataLoader's workers). Here plain threads run kernels that hold no
lock and no Python object; between calls they watch a bell without the interpreter's lock for a
moment, so that a call right after another costs about a microsecond to share, then they sleep.
A call that finds the team at work on another one runs alone. A forked child starts a team anew.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np

from projgen.cpu.load import load, making
from projgen.forks import whole
from projgen.render import render_team

THREADS = "PROJGEN_NUM_THREADS"  # the variable of the environment
PATIENCE = 200e-6  # seconds that a follower looks at a silent bell before it sleeps
_LOOKS = 500  # to time them by: how long one takes differs tenfold between processors

# What the team shares, and where it lies: cells that change are on cache lines of their own. The
# bell counts: it is odd while a call is open, so that its number names the call.
BOARD = {"BELL": 0, "INSIDE": 16, "ENTRIES": 32, "CALL": 48, "FOLLOWERS": 54}
_CELLS = 64

_POINTER = ctypes.c_void_p
_LEAD = ctypes.CFUNCTYPE(ctypes.c_int64, _POINTER)
_FOLLOW = ctypes.CFUNCTYPE(ctypes.c_int64, _POINTER, ctypes.c_int64, ctypes.c_int64)


class Team:
    """One call at a time, shared with `followers` threads that start when first needed."""

    def __init__(self) -> None:
        module: Any = load(render_team(BOARD))
        self._module = module  # keeps the machine code alive
        self._lead = _LEAD(module.lead.address)
        self._follow = _FOLLOW(module.follow.address)
        self._board = np.zeros(_CELLS + 8, np.int64)
        pointer = int(self._board.ctypes.data)
        self._board = self._board[(-pointer % 64) // 8 :]
        self._at = int(self._board.ctypes.data)
        self._call = slice(BOARD["CALL"], BOARD["FOLLOWERS"] + 1)
        self._busy = threading.Lock()
        self._asleep: list[threading.Event] = []
        self._followers = 0
        self._looks = self._patience()

    def run(self, call: tuple[int, int, int, int, int, int], followers: int) -> int | None:
        """Call the function at address ``call[0]`` with the five addresses after it, together.

        None, and nothing done, if the team is at work on another call.
        """
        if not self._busy.acquire(blocking=False):
            return None
        try:
            self._board[self._call] = (*call, followers)
            self._start(followers)
            for _ in range(min(followers, len(self._asleep))):
                self._asleep.pop().set()
            return int(self._lead(self._at))
        finally:
            self._busy.release()

    def _start(self, followers: int) -> None:
        """Threads, until there are so many; or fewer, where the system gives no more.

        None while the interpreter shuts down: a new thread would be waited for in vain.
        """
        while self._followers < followers and not sys.is_finalizing():
            try:
                threading.Thread(target=self._work, name="projgen", daemon=True).start()
            except RuntimeError:  # a limit is reached
                return
            self._followers += 1

    def _patience(self) -> int:
        """How many looks at a silent bell take as long as a follower has patience."""
        seconds = []
        for _ in range(5):  # the system may interrupt some
            started = perf_counter()
            self._follow(self._at, 0, _LOOKS)
            seconds.append(perf_counter() - started)
        return round(PATIENCE / min(seconds) * _LOOKS)

    def _work(self) -> None:
        """A follower's life."""
        heard = 0
        wake = threading.Event()
        while True:
            heard = self._follow(self._at, heard, self._looks)
            wake.clear()
            self._asleep.append(wake)
            if self._calls_after(heard):
                # It could not wake this thread, which waited for the interpreter's lock meanwhile.
                with suppress(ValueError):
                    self._asleep.remove(wake)
            else:
                wake.wait()

    def _calls_after(self, heard: int) -> bool:
        """Whether a call is open, or about to be, that came after the bell was last heard."""
        open_and_heard = heard % 2 == 1 and heard == self._board[BOARD["BELL"]]
        return self._busy.locked() and not open_and_heard


_team: Team | None = None


def team() -> Team:
    """The process's team."""
    global _team
    if _team is None:
        with whole, making:
            if _team is None:
                made = Team()  # a finaliser that runs meanwhile may call a projection
                _team = _team or made
    return _team


def default_threads() -> int:
    """``PROJGEN_NUM_THREADS``, else the number of processors that this process may use."""
    asked = asked_threads()
    if asked:
        return asked
    if asked == 0:
        given = os.environ[THREADS]
        warnings.warn(
            f"{THREADS}={given} is ignored: it is a whole number of at least 1",
            RuntimeWarning,
            stacklevel=2,
        )
    return processors()


def asked_threads() -> int | None:
    """``PROJGEN_NUM_THREADS``; None if it is not set, and 0 if that is no number of threads."""
    given = os.environ.get(THREADS, "").strip()
    if not given:
        return None
    return int(given) if given.isdecimal() else 0


def processors() -> int:
    """How many this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _forget() -> None:
    """In a forked child: the parent's threads do not exist here."""
    global _team
    _team = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
