"""Sorting networks: which values to compare, and exchange, whatever they are."""

from functools import cache


@cache
def exchanges(size: int) -> tuple[tuple[int, int], ...]:
    """Pairs (i, j), i < j: put the larger of values i and j first, pair after pair, and all
    `size` values descend. Batcher's merge exchange (Knuth, algorithm 5.2.2M).
    """
    pairs = []
    top = 1 << max(0, (size - 1).bit_length() - 1)
    part = top if size > 1 else 0
    while part:
        stride, rest, gap = top, 0, part
        while True:
            pairs += [(i, i + gap) for i in range(size - gap) if i & part == rest]
            if stride == part:
                break
            gap, rest = stride - part, part
            stride //= 2
        part //= 2
    return tuple(pairs)
