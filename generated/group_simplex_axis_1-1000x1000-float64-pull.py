"""simplex: takes gradients back through the projection of groups of float64 arrays.

    a group's runs are contiguous in memory

A first sweep sums what the gradients of the groups' radii are made of, a second one writes those of
the values.
Of a group, v is the value and u the radius; of its values, y are the elements, x their projection, g
its gradient. Work is in float64.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import numpy as np
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
EXACT = {"contract", "nsz"}  # what is no sum keeps its order: values may be very large, or small


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


@intrinsic
def chosen(typing_context, yes, a, b):
    """`a` if yes, else `b`: both are at hand, so a loop of it is made of vectors."""
    kind = typing_context.unify_types(a, b)

    def codegen(context, builder, signature, args):
        a, b = (context.cast(builder, x, t, kind) for x, t in zip(args[1:], signature.args[1:]))
        return builder.select(args[0], a, b)

    return kind(types.boolean, a, b), codegen


# The desk, where the threads of a call meet. Cell 0 counts them, the next ones say where arrays are and
# what is asked for. Each thread's share of the blocks has a counter.
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


@intrinsic
def pointer(typing_context, address):
    """To the float64 values at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), codegen


@register_jitable(fastmath=FAST, error_model="numpy")
def gather(x, g, base_y, index, axes):
    """What is summed of a group."""
    total = count = 0.0
    y_offsets = span(index, axes[31], axes[32] - axes[31])
    run = axes[20]
    for o in range(y_offsets.size):
        at_y = base_y + y_offsets[o]
        x_row = span(x, at_y, run)
        g_row = span(g, at_y, run)
        for j in range(run):
            x_j = x_row[j]
            g_j = g_row[j]
            total += chosen(x_j > 0, g_j, 0.0)
            count += chosen(x_j > 0, 1.0, 0.0)
    return total, count


@register_jitable(fastmath=EXACT, error_model="numpy")
def settle(radii, totals, counts, slopes):
    """The gradients of the groups' radii, by what was summed."""
    for group in range(slopes.size):
        u, total, count = radii[group], totals[group], counts[group]
        slopes[group] = total / max(count, 1.0) if u > 0 else 0.0


@register_jitable(fastmath=EXACT, error_model="numpy")
def weigh(u, total, count):
    """What the gradients of a group's values need to know of it."""
    floor = 0.0 if u > 0 else np.inf
    drop = total / max(count, 1.0) if u > 0 else 0.0
    return floor, drop


@register_jitable(fastmath=EXACT, error_model="numpy")
def share(x, g, out, base_y, floor, drop, index, axes):
    """The gradients of the values of a group."""
    y_offsets = span(index, axes[31], axes[32] - axes[31])
    run = axes[20]
    for o in range(y_offsets.size):
        at_y = base_y + y_offsets[o]
        x_row = span(x, at_y, run)
        g_row = span(g, at_y, run)
        out_row = span(out, at_y, run)
        for j in range(run):
            x_j = x_row[j]
            g_j = g_row[j]
            out_row[j] = chosen(x_j > floor, g_j - drop, 0.0)


@cfunc(
    types.int64(
        types.CPointer(types.float64),
        types.CPointer(types.float64),
        types.CPointer(types.int64),
        types.CPointer(types.float64),
        types.CPointer(types.int64),
    ),
    error_model="numpy",
    _nrt=False,
    cache=True,
)
def pull(y_at, x_at, geometry, work, desk):
    """Take part in one call; any number of threads may, with the same arguments.

    `geometry` holds extents and offsets; `work` has room, and then what is known of the groups:
    radii, slopes, totals, counts.
    The desk's cells 1 and 2 have the addresses of the projection's gradient and of the result.

    Cell 3 says what is asked for: 1 for the sums, 2 for the gradients of the values by these, 3 for
    both, 0 for the gradients of the radii, which one thread works out by the sums.
    """
    axes = fetch(geometry, 37)
    index_size = axes[0]
    y_size = axes[1]
    memory_size = axes[4]
    seats = axes[5]
    groups = axes[9]
    blocks = axes[10]
    block_size = axes[11]
    items = axes[12]
    extent = axes[15]
    y_bases_at = axes[17]
    y_lane = axes[24]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    index = span(geometry, 0, index_size)
    x = span(x_at, 0, y_size)
    g = span(pointer(read(desk, 1)), 0, y_size)
    out = span(pointer(read(desk, 2)), 0, y_size)
    memory = span(work, 0, memory_size)
    radii = span(memory, 0, groups)
    slopes = span(memory, groups, groups)
    totals = span(memory, 2 * groups, groups)
    counts = span(memory, 3 * groups, groups)
    task = read(desk, 3)
    if task == 0:
        settle(radii, totals, counts, slopes)
        return 0
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            return 0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            outer, past = item // extent, item % extent
            base_y = index[y_bases_at + outer] + past * y_lane
            if task != 2:
                u = radii[item]
                totals[item], counts[item] = gather(x, g, base_y, index, axes) if u > 0 else (0.0, 0.0)
            if task != 1:
                floor, drop = weigh(radii[item], totals[item], counts[item])
                share(x, g, out, base_y, floor, drop, index, axes)
