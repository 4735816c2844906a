"""l0: groups of float32 arrays.

    groups of 4 lie one after the other in memory: 256 are worked on together

Groups are swept for their values, and in a second call to project them.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
LANES = 256  # groups side by side that are worked on together
MAGNITUDE = np.int32(0x7FFFFFFF)  # all of a float's bits but its sign
INFINITE = np.int32(0x7F800000)


@intrinsic(prefer_literal=True)
def fetch(typing_context, cells, number):
    """The first cells behind a pointer."""
    several = types.UniTuple(cells.dtype, number.literal_value)

    def codegen(context, builder, signature, args):
        places = [context.get_constant(types.intp, i) for i in range(len(several))]
        found = [builder.load(builder.gep(args[0], [place])) for place in places]
        return context.make_tuple(builder, several, found)

    return several(cells, number), codegen


def dense(context, builder, signature, data, size):
    """Make an array of what lies in memory."""
    array = context.make_array(signature.return_type)(context, builder)
    itemsize = context.get_constant(types.intp, signature.return_type.dtype.bitwidth // 8)
    array.data, array.nitems, array.itemsize = data, size, itemsize
    array.shape = builder.insert_value(array.shape, size, 0)
    array.strides = builder.insert_value(array.strides, itemsize, 0)
    return array._getvalue()


@intrinsic
def span(typing_context, source, start, size):
    """source[start : start + size], which lies inside it: a dense array, or behind a pointer."""
    of_array = isinstance(source, types.Array)
    assert not of_array or source.layout == "C"

    def codegen(context, builder, signature, args):
        data = context.make_array(source)(context, builder, args[0]).data if of_array else args[0]
        return dense(context, builder, signature, builder.gep(data, [args[1]]), args[2])

    return types.Array(source.dtype, 1, "C")(source, types.intp, types.intp), codegen


@intrinsic
def view(typing_context, x, dtype):
    """x.view(dtype), of a dense array or a number."""
    kind, of_array = dtype.dtype, isinstance(x, types.Array)
    assert not of_array or x.layout == "C"

    def codegen(context, builder, signature, args):
        if not of_array:
            return builder.bitcast(args[0], context.get_value_type(kind))
        given = context.make_array(x)(context, builder, args[0])
        had, has = (context.get_constant(types.intp, t.bitwidth) for t in (x.dtype, kind))
        size = builder.udiv(builder.mul(given.nitems, had), has)
        data = builder.bitcast(given.data, context.get_value_type(types.CPointer(kind)))
        return dense(context, builder, signature, data, size)

    return (types.Array(kind, 1, "C") if of_array else kind)(x, dtype), codegen


def replaced(typing_context, a, b, order):
    """A number, or another one where that comes before or after it: Python's `max` and `min`."""
    kind = typing_context.unify_types(a, b)

    def codegen(context, builder, signature, args):
        a, b = (context.cast(builder, x, t, kind) for x, t in zip(args, signature.args))
        if isinstance(kind, types.Float):
            compare = builder.fcmp_ordered
        else:
            compare = builder.icmp_signed if kind.signed else builder.icmp_unsigned
        return builder.select(compare(order, b, a), b, a)

    return kind(a, b), codegen


@intrinsic
def max(typing_context, a, b):
    """The larger number; the first, if one is NaN."""
    return replaced(typing_context, a, b, ">")


@intrinsic
def min(typing_context, a, b):
    """The smaller number; the first, if one is NaN."""
    return replaced(typing_context, a, b, "<")


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
    return view(np.float64(value), np.int64) & np.int64(0x7FFFFFFFFFFFFFFF)


@register_jitable
def count(y, base_y, width, y_step, counts):
    """How many values of each group of a tile are not zero; NaN in the first if one is not finite."""
    top = np.int32(0)
    row = view(span(y, base_y, 4 * width), np.int32)
    for c in range(width):
        total = 0
        a = row[4 * c]
        total += 1 if a & MAGNITUDE > 0 else 0
        top = max(top, a & MAGNITUDE)
        a = row[4 * c + 1]
        total += 1 if a & MAGNITUDE > 0 else 0
        top = max(top, a & MAGNITUDE)
        a = row[4 * c + 2]
        total += 1 if a & MAGNITUDE > 0 else 0
        top = max(top, a & MAGNITUDE)
        a = row[4 * c + 3]
        total += 1 if a & MAGNITUDE > 0 else 0
        top = max(top, a & MAGNITUDE)
        counts[c] = total
    if top >= INFINITE:
        counts[0] = np.nan


@register_jitable
def keep(y, x, base_y, base_x, width, y_step, x_step, kept):
    """Keep the `kept` largest values of each group of a tile; of equal ones the first."""
    row = view(span(y, base_y, 4 * width), np.int32)
    target = view(span(x, base_x, 4 * width), np.int32)
    for c in range(width):
        y0 = row[4 * c]
        a0 = y0 & MAGNITUDE
        y1 = row[4 * c + 1]
        a1 = y1 & MAGNITUDE
        y2 = row[4 * c + 2]
        a2 = y2 & MAGNITUDE
        y3 = row[4 * c + 3]
        a3 = y3 & MAGNITUDE
        # By value: how many come before it, largest first.
        before0 = np.int32(3)
        before1 = np.int32(2)
        before2 = np.int32(1)
        before3 = np.int32(0)
        first = np.int32(a0 >= a1)
        before1 += first
        before0 -= first
        first = np.int32(a0 >= a2)
        before2 += first
        before0 -= first
        first = np.int32(a1 >= a2)
        before2 += first
        before1 -= first
        first = np.int32(a0 >= a3)
        before3 += first
        before0 -= first
        first = np.int32(a1 >= a3)
        before3 += first
        before1 -= first
        first = np.int32(a2 >= a3)
        before3 += first
        before2 -= first
        target[4 * c] = y0 if before0 < kept[c] else y0 & ~MAGNITUDE
        target[4 * c + 1] = y1 if before1 < kept[c] else y1 & ~MAGNITUDE
        target[4 * c + 2] = y2 if before2 < kept[c] else y2 & ~MAGNITUDE
        target[4 * c + 3] = y3 if before3 < kept[c] else y3 & ~MAGNITUDE


@cfunc(
    types.int64(
        types.CPointer(types.float32),
        types.CPointer(types.float32),
        types.CPointer(types.int64),
        types.CPointer(types.float64),
        types.CPointer(types.int64),
    ),
    error_model="numpy",
    _nrt=False,
    cache=True,
)
def project(y_at, x_at, geometry, work, desk):
    """Take part in one call; any number of threads may, with the same arguments.

    `geometry` holds extents and offsets, `work` the groups' values, their radii, and room to work;
    a first radius below 0 asks for the values alone. `desk` holds zeros; each thread leaves the bits
    of the highest value that it found in the cell after that of its share. Returns 0.
    """
    axes = fetch(geometry, 37)
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
    tiles = axes[14]
    extent = axes[15]
    y_bases_at = axes[17]
    x_bases_at = axes[18]
    y_lane = axes[24]
    x_lane = axes[25]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    index = span(geometry, 0, index_size)
    y = span(y_at, 0, y_size)
    x = span(x_at, 0, x_size)
    memory = span(work, 0, memory_size)
    values = span(memory, 0, groups)
    radii = span(memory, groups, groups)
    at = 2 * groups + seat * scratch_size
    cells = view(span(memory, at, scratch_size), np.int32)
    kept = span(cells, 0, LANES)
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            # A tile: groups side by side.
            tile = item
            outer, past = tile // tiles, tile % tiles * LANES
            first, width = outer * extent + past, min(LANES, extent - past)
            base_y = index[y_bases_at + outer] + past * y_lane
            base_x = index[x_bases_at + outer] + past * x_lane
            if not projecting:
                count(y, base_y, width, axes[21], span(values, first, width))
                highest = max(highest, bits_of(values[first]))
                continue
            for c in range(width):
                kept[c] = np.int32(min(radii[(first + c) * radius_step], 4.0))
            keep(y, x, base_y, base_x, width, axes[21], axes[22], kept)
