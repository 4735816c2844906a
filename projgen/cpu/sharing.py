"""Whether a kernel's calls are quicker shared with the team or alone: found out by trying.

Sizes do not tell. The other processors may be busy, asleep, or far from this one's cache. Calls in
a row find threads awake and values in caches, those after a pause do not: for these to be woken may
take longer than the call. So what is known of the ones says nothing of the others. Results are the
same either way, to the bit.
"""

from __future__ import annotations

from projgen.cpu import pool

RUN = 3  # calls that try one way in turn: the first wakes threads, and moves values between caches
TRIES = 2 * RUN  # calls that try both ways at first
PATIENT = 16  # calls from one look at the slower way to the next; doubles while nothing changes
PATIENCE = 1024  # and stops doubling here
WEIGHT = 0.25  # of the latest call in the running average of its way
PAUSE = pool.PATIENCE  # seconds: after a call that comes later than this, followers sleep


class Sharing:
    """What is known of the calls of one kernel. Not exact if threads learn at once; never wrong."""

    __slots__ = ("_ended", "_kind", "_kinds", "_started")

    def __init__(self) -> None:
        self._kinds = Ways(), Ways()  # of calls in a row, and of those after a pause
        self._kind = self._kinds[1]
        self._started = self._ended = float("-inf")

    def choose(self, started: float) -> bool:
        """Whether to share a call that starts now, by the clock."""
        self._started = started
        self._kind = self._kinds[started - self._ended > PAUSE]
        return self._kind.choose()

    def learn(self, shared: bool, seconds: float) -> None:
        """It took so long."""
        self._ended = self._started + seconds
        self._kind.learn(shared, seconds)


class Ways:
    """What is known of one kind of calls, shared and alone."""

    __slots__ = ("_calls", "_look", "_nth", "_other", "_patience", "_seconds")

    def __init__(self) -> None:
        self._seconds: dict[bool, float] = {}
        self._calls = 0
        self._nth = 0  # of a run: which call this is
        self._patience = PATIENT
        self._look = TRIES + PATIENT  # the call that looks at the slower way again
        self._other = True

    def choose(self) -> bool:
        """Whether to share the next call."""
        self._calls += 1
        if self._calls <= TRIES:
            self._nth = (self._calls - 1) % RUN
            return self._calls <= RUN
        since = self._calls - self._look
        if since < 0:
            return self.pays
        if since == 0:
            self._other = not self.pays
        self._nth = since
        if since >= RUN - 1:
            self._patience = min(2 * self._patience, PATIENCE)
            self._look = self._calls + self._patience
        return self._other

    def learn(self, shared: bool, seconds: float) -> None:
        """A call took so long."""
        paid = self.pays
        known = self._seconds.get(shared)
        if known is None or shared != paid or self._calls <= TRIES:
            # An interruption must not decide: of a run's later calls the quickest counts.
            quickest = seconds if known is None or self._nth <= 1 else min(seconds, known)
            self._seconds[shared] = quickest
        else:
            # A thread that was interrupted says little: several in a row do.
            self._seconds[shared] = known + WEIGHT * (min(seconds, 2 * known) - known)
        if self.pays != paid:
            self._patience = PATIENT
            self._look = self._calls + PATIENT

    @property
    def pays(self) -> bool:
        """Whether sharing has been the quicker way, as far as is known."""
        return self._seconds.get(True, 0.0) <= self._seconds.get(False, float("inf"))
