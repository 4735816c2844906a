"""l2(groups): groups of float32 arrays.

    labelled elements are read as they lie, and added up by label

Groups are swept for their values, and in a second call to project them.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from numba import carray, cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check


# The desk, where the threads of a call meet. Cell 0 counts them, cell 1 may hold where weights are,
# cell 2 the step from a group's radius to the next one's: 0 where all have the same. Each thread's
# share of the blocks has a counter.
SHARES = 32


@intrinsic
def add(typing_context, cells, index, amount):
    """Add to a cell, atomically; its old value."""

    def codegen(context, builder, signature, args):
        cell = builder.gep(args[0], [args[1]])
        return builder.atomic_rmw("add", cell, args[2], "seq_cst")

    return types.int64(cells, types.int64, types.int64), codegen


@intrinsic
def read(typing_context, cells, index):
    """A cell's value, atomically."""

    def codegen(context, builder, signature, args):
        cell = builder.gep(args[0], [args[1]])
        return builder.load_atomic(cell, "seq_cst", 8)

    return types.int64(cells, types.int64), codegen


@intrinsic
def swap(typing_context, cells, index, old, new):
    """Make a cell `new` if it is `old`, atomically; what it was."""

    def codegen(context, builder, signature, args):
        cell = builder.gep(args[0], [args[1]])
        found = builder.cmpxchg(cell, args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(found, 0)

    return types.int64(cells, types.int64, types.int64, types.int64), codegen


@register_jitable
def draw(desk, seat, seats, phase, blocks):
    """The next block of a phase for a thread: of its own share, which may still be in its cache,
    then of the others'; -1 when all are drawn. A counter holds the phase, and how many were drawn.
    """
    for turn in range(seats):
        share = (seat + turn) % seats
        start = share * blocks // seats
        size = (share + 1) * blocks // seats - start
        cell = SHARES + 16 * share
        found = read(desk, cell)
        while found >> 32 <= phase:
            drawn = found - (phase << 32) if found >> 32 == phase else 0
            if drawn == size:
                break
            seen = swap(desk, cell, found, (phase << 32) + drawn + 1)
            if seen == found:
                return start + drawn
            found = seen
    return -1


@register_jitable
def bits_of(value):
    """The bits of a float but its sign; those of infinity and NaN are the highest."""
    return np.float64(value).view(np.int64) & np.int64(0x7FFFFFFFFFFFFFFF)


@register_jitable(fastmath=FAST)
def measure(y, at_y, y_step, own, sums, tops):
    """The values of some labelled elements' groups, by label; NaN where one is not finite."""
    part_y = y[at_y : at_y + own.size]
    sums[:] = 0.0
    for i in range(own.size):
        a = abs(np.float64(part_y[i]))
        sums[own[i]] += a * a
    rescued = False
    for m in range(sums.size):
        rescued = rescued or not 1e-280 < sums[m] < 1e300
    if rescued:
        lengths(y, at_y, y_step, own, sums, tops)
        return
    for m in range(sums.size):
        sums[m] = math.sqrt(sums[m])


@register_jitable
def lengths(y, at_y, y_step, own, sums, tops):
    """Those values, where some squares have no room: relative to the largest of a group."""
    part_y = y[at_y : at_y + own.size]
    bits = tops.view(np.int64)
    bits[:] = 0
    for i in range(own.size):
        bits[own[i]] = max(bits[own[i]], bits_of(abs(np.float64(part_y[i]))))
    for m in range(sums.size):
        if 1e-280 < sums[m] < 1e300:
            sums[m], tops[m] = math.sqrt(sums[m]), -1.0
        elif 0 < tops[m] < np.inf:
            sums[m] = 0.0
        else:
            sums[m], tops[m] = tops[m], -1.0
    for i in range(own.size):
        top = tops[own[i]]
        if top > 0:
            a = abs(np.float64(part_y[i])) / top
            sums[own[i]] += a * a
    for m in range(sums.size):
        sums[m] = tops[m] * math.sqrt(sums[m]) if tops[m] > 0 else sums[m]


@register_jitable(fastmath=FAST, error_model="numpy")
def write(y, x, at_y, y_step, at_x, x_step, own, levels):
    """The projection of some labelled elements, whose groups' levels are found."""
    part_y = y[at_y : at_y + own.size]
    part_x = x[at_x : at_x + own.size]
    for i in range(own.size):
        t = levels[own[i]]
        a = abs(np.float64(part_y[i]))
        part_x[i] = math.copysign(a * t, part_y[i])


@cfunc(
    types.int64(
        types.CPointer(types.float32),
        types.CPointer(types.float32),
        types.CPointer(types.int64),
        types.CPointer(types.float64),
        types.CPointer(types.int64),
    ),
    cache=True,
)
def project(y_at, x_at, geometry, work, desk):
    """Take part in one call; any number of threads may, with the same arguments.

    `geometry` holds extents and offsets, `work` the groups' values, their radii, and room to work;
    a first radius below 0 asks for the values alone. `desk` holds zeros; each thread leaves the bits
    of the highest value that it found in the cell after that of its share. Returns 0.
    """
    axes = carray(geometry, 37)
    index_size = axes[0]
    y_size = axes[1]
    x_size = axes[2]
    memory_size = axes[4]
    seats = axes[5]
    scratch_size = axes[6]
    groups = axes[9]
    blocks = axes[10]
    block_size = axes[11]
    items = axes[12]
    labels = axes[13]
    extent = axes[15]
    starts_at = axes[16]
    y_bases_at = axes[17]
    x_bases_at = axes[18]
    y_lane = axes[24]
    x_lane = axes[25]
    pieces = axes[27]
    piece = axes[28]
    slots_at = axes[29]
    slots_size = axes[30]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    index = carray(geometry, index_size)
    y = carray(y_at, y_size)
    x = carray(x_at, x_size)
    memory = carray(work, memory_size)
    values = memory[:groups]
    radii = memory[groups : 2 * groups]
    at = 2 * groups + seat * scratch_size
    levels = memory[at + slots_size : at + slots_size + labels]
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            first, part = item // pieces, item % pieces
            outer, past = first // extent, first % extent
            base_y = index[y_bases_at + outer] + past * y_lane
            base_x = index[x_bases_at + outer] + past * x_lane
            begin, end = part * piece, min((part + 1) * piece, axes[20])
            own = index[starts_at + begin : starts_at + end].view(np.uint64)
            y_step = axes[21]
            at_y = base_y + begin * y_step
            x_step = axes[22]
            at_x = base_x + begin * x_step
            if not projecting:
                sums = memory[slots_at + item * labels : slots_at + (item + 1) * labels]
                measure(y, at_y, y_step, own, sums, levels)
                for m in range(labels):
                    highest = max(highest, bits_of(sums[m]))
                continue
            for m in range(labels):
                v, u = values[first * labels + m], radii[(first * labels + m) * radius_step]
                levels[m] = u / v if v > u else 1.0
            write(y, x, at_y, y_step, at_x, x_step, own, levels)
