"""TEMPORARY."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ball:
    norm: str
    p: float | None = None
    weighted: bool = False
    nonneg: bool = False
    ragged: bool = False


class GroupCall:
    def __init__(self, *a):
        raise NotImplementedError
