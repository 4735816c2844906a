"""linf(groups): takes gradients back through the projection of groups of float32 arrays.

    labelled elements are read as they lie, and added up by label

A first sweep sums what the gradients of the groups' radii are made of, a second one writes those of
the values; `rise` is what reaches the value of a group.
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
    """To the float32 values at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), codegen


@register_jitable(fastmath=EXACT)
def along(y, g):
    """g in the direction in which the magnitude of y grows."""
    return g if y > 0 else -g


@register_jitable(fastmath=FAST, error_model="numpy")
def gather(y, g, at_y, own, radii, values, totals, ties):
    """What is summed of labelled elements, by label."""
    totals[:] = 0.0
    ties[:] = 0.0
    y_row = span(y, at_y, own.size)
    g_row = span(g, at_y, own.size)
    for j in range(own.size):
        y_j = np.float64(y_row[j])
        g_j = np.float64(g_row[j])
        m = own[j]
        u = radii[m]
        v = values[m]
        total = totals[m]
        tie = ties[m]
        total += chosen(abs(y_j) > u, along(y_j, g_j), 0.0)
        tie += chosen(abs(y_j) == v, 1.0, 0.0)
        totals[m] = total
        ties[m] = tie


@register_jitable(fastmath=EXACT, error_model="numpy")
def settle(values, radii, totals, slopes):
    """The gradients of the groups' radii, by what was summed."""
    for group in range(slopes.size):
        v, u, total = values[group], radii[group], totals[group]
        slopes[group] = total if 0 < u < v else 0.0


@register_jitable(fastmath=EXACT, error_model="numpy")
def weigh(v, u, tie, rise):
    """What the gradients of a group's values need to know of it."""
    limit = -1.0 if u <= 0 else u if u < v else np.inf
    top = v if v > 0 else -1.0
    lift = rise / max(tie, 1.0)
    return limit, top, lift


@register_jitable(fastmath=EXACT, error_model="numpy")
def share(y, g, out, at_y, own, limits, tops, lifts):
    """The gradients of the values of labelled elements."""
    y_row = span(y, at_y, own.size)
    g_row = span(g, at_y, own.size)
    out_row = span(out, at_y, own.size)
    for j in range(own.size):
        y_j = np.float64(y_row[j])
        g_j = np.float64(g_row[j])
        m = own[j]
        limit = limits[m]
        top = tops[m]
        lift = lifts[m]
        found = chosen(abs(y_j) <= limit, g_j, 0.0)
        found += chosen(abs(y_j) == top, along(y_j, lift), 0.0)
        out_row[j] = found


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
def pull(y_at, x_at, geometry, work, desk):
    """Take part in one call; any number of threads may, with the same arguments.

    `geometry` holds extents and offsets; `work` has room, and then what is known of the groups:
    values, radii, slopes, totals, ties.
    The desk's cells 1 and 2 have the addresses of the projection's gradient and of the result.

    Cell 3 says what is asked for: 1 for the sums, 2 for the gradients of the values by these, 3 for
    both, 0 for the gradients of the radii, which one thread works out by the sums.
    For those of the values `slopes` has what reaches the values of the groups.
    """
    axes = fetch(geometry, 37)
    index_size = axes[0]
    y_size = axes[1]
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
    run = axes[20]
    y_step = axes[21]
    y_lane = axes[24]
    pieces = axes[27]
    piece = axes[28]
    slots_at = axes[29]
    slots_size = axes[30]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    index = span(geometry, 0, index_size)
    y = span(y_at, 0, y_size)
    g = span(pointer(read(desk, 1)), 0, y_size)
    out = span(pointer(read(desk, 2)), 0, y_size)
    memory = span(work, 0, memory_size)
    scratch = span(memory, seat * scratch_size, scratch_size)
    memory = span(memory, seats * scratch_size, memory_size - seats * scratch_size)
    values = span(memory, 0, groups)
    radii = span(memory, groups, groups)
    slopes = span(memory, 2 * groups, groups)
    totals = span(memory, 3 * groups, groups)
    ties = span(memory, 4 * groups, groups)
    limits = span(scratch, 0, labels)
    tops = span(scratch, labels, labels)
    lifts = span(scratch, 2 * labels, labels)
    task = read(desk, 3)
    if task == 0:
        settle(values, radii, totals, slopes)
        return 0
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            return 0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            row, part = item // pieces, item % pieces
            first = row * labels
            outer, past = row // extent, row % extent
            begin, end = part * piece, min((part + 1) * piece, run)
            own = view(span(index, starts_at + begin, end - begin), np.uint64)
            at_y = index[y_bases_at + outer] + past * y_lane + begin * y_step
            if task != 2:
                totals_at = slots_at + item * labels
                ties_at = slots_at + slots_size + item * labels
                gather(y, g, at_y, own, span(radii, first, labels), span(values, first, labels), span(memory, totals_at, labels), span(memory, ties_at, labels))
            if task != 1:
                for m in range(labels):
                    limits[m], tops[m], lifts[m] = weigh(values[first + m], radii[first + m], ties[first + m], slopes[first + m])
                share(y, g, out, at_y, own, limits, tops, lifts)
