"""linf(axis=1): takes gradients back through the projection of float32 arrays.

    level 0  linf  of y: rows (groups, reduced)

Gradients of radii are gathered from the leaf to the root, then gradients of values are shared out
from the root to the leaf.
`rise` is what reaches the value of a group.
Of a group, v is the value, u the radius, a a sum of gradients and n a count of values.
Other kernels do the levels of the tree above these.
The threads share the leaf's blocks, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import numpy as np
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

CHUNK = 1024  # values of a sum in float32: longer ones are in float64
FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning


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


# The desk, where the threads of a call meet. Cell 0 counts them, cells 1 and 2 have addresses, cell 3
# says which half of the work is asked for.
# Each phase has a cell of the blocks that are done and one that opens the next; each thread's share
# of the blocks has a counter.
SHARES = 64


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
def complete(desk, phase, done, blocks):
    """Count blocks of a phase as done; whether they were the last ones."""
    return done > 0 and add(desk, 16 * phase, done) + done == blocks


@register_jitable
def release(desk, phase, status):
    """Let the threads go on that wait for the end of a phase."""
    add(desk, 16 * phase + 8, status + 1)


@register_jitable
def wait(desk, phase):
    """Return at the end of a phase, with its status."""
    while read(desk, 16 * phase + 8) == 0:
        pass
    return read(desk, 16 * phase + 8) - 1


@intrinsic
def pointer(typing_context, address):
    """To the float32 values at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), codegen


@register_jitable(fastmath=FAST)
def along(y, g):
    """g in the direction in which the magnitude of y grows."""
    return g if y > 0 else -g


@register_jitable
def down(x):
    """The largest float32 that is not above x >= 0."""
    near = np.float32(x)
    return near if near <= x else view(np.int32(view(near, np.int32) - 1), np.float32)


@register_jitable(fastmath=FAST)
def prepare_0(values, radii, limit, top):
    """What the values of level 0, linf of y are compared with, group by group."""
    for group in range(values.size):
        v, u = values[group], radii[group]
        limit[group] = -1 if u <= 0 else np.inf if u >= v else down(u)
        top[group] = v if v > 0 else -1


@register_jitable(fastmath=FAST)
def gather_0(y, g, values, radii, limits, tops, sums, tallies, first, last, axes):
    """Sums over the groups of level 0, linf of y, for the gradients of their radii."""
    n1, s0 = axes[1], axes[2]
    for i0 in range(first, last):
        group = i0
        a = 0.0
        n = 0.0
        if 0 < radii[group] < values[group]:
            at = i0 * s0
            y_row = span(y, at, n1)
            g_row = span(g, at, n1)
            limit, top = limits[group], tops[group]
            for start in range(0, y_row.size, CHUNK):
                y_part = y_row[start : start + CHUNK]
                g_part = g_row[start : start + CHUNK]
                part_a = np.float32(0)
                part_n = np.float32(0)
                for j in range(y_part.size):
                    part_a += chosen(abs(y_part[j]) > limit, along(y_part[j], g_part[j]), np.float32(0))
                    part_n += chosen(abs(y_part[j]) == top, np.float32(1), np.float32(0))
                a += np.float64(part_a)
                n += np.float64(part_n)
        sums[group] = a
        tallies[group] = n


@register_jitable(fastmath=FAST)
def settle_0(values, radii, sums, slope):
    """The gradients of the radii of level 0, linf of y, from the sums."""
    for group in range(values.size):
        v, u, a = values[group], radii[group], sums[group]
        slope[group] = a if 0 < u < v else 0.0


@register_jitable(fastmath=FAST)
def weigh_0(tallies, rise, lift):
    """What the gradients of the values of level 0, linf of y need to know of their groups."""
    for group in range(rise.size):
        n = tallies[group]
        lift[group] = rise[group] / max(n, 1.0)


@register_jitable(fastmath=FAST)
def share_0(y, g, out, values, radii, limits, tops, lifts, first, last, axes):
    """The gradients of the values of level 0, linf of y."""
    n1, s0 = axes[1], axes[2]
    for i0 in range(first, last):
        group = i0
        at = i0 * s0
        y_row = span(y, at, n1)
        g_row = span(g, at, n1)
        out_row = span(out, at, n1)
        # nothing rises to groups that vanish or are inside: the level above is the root
        if radii[group] <= 0:
            for j in range(y_row.size):
                out_row[j] = 0
        elif radii[group] >= values[group]:
            for j in range(y_row.size):
                out_row[j] = g_row[j]
        else:
            limit = limits[group]
            top = tops[group]
            lift = lifts[group]
            for j in range(y_row.size):
                out_row[j] = chosen(abs(y_row[j]) <= limit, g_row[j], np.float32(0)) + chosen(abs(y_row[j]) == top, along(y_row[j], lift), np.float32(0))


@cfunc(
    types.int64(
        types.CPointer(types.float32),
        types.CPointer(types.float32),
        types.CPointer(types.int64),
        types.CPointer(types.float64),
        types.CPointer(types.int64),
    ),
    fastmath=FAST,
    error_model="numpy",
    _nrt=False,
    cache=True,
)
def pull(y_at, x_at, geometry, work, desk):
    """Take part in one call; any number of threads may, with the same arguments.

    `geometry` holds extents and strides; `work` what the projection of y to x found, and room. The
    desk's cells 1 and 2 have the addresses of the projection's gradient and of the result.

    Without a 1 in cell 3 of the desk, it stops at the gradients of the radii, in `slope`. With it, it
    goes on from there: `slope` has what reaches the values of the groups instead.
    """
    cells = fetch(geometry, 29)
    y_size = cells[0]
    blocks_0 = cells[8]
    step_0 = cells[9]
    end_0 = cells[10]
    radius_at = cells[11]
    radius_end = cells[12]
    total_at = cells[13]
    total_end = cells[14]
    slope_at = cells[15]
    slope_end = cells[16]
    sums_0_at = cells[17]
    sums_0_end = cells[18]
    tallies_0_at = cells[19]
    tallies_0_end = cells[20]
    limit_0_at = cells[21]
    limit_0_end = cells[22]
    top_0_at = cells[23]
    top_0_end = cells[24]
    lift_0_at = cells[25]
    lift_0_end = cells[26]
    seats = cells[27]
    memory_size = cells[28]
    axes_0 = cells[1 : 8]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    y = span(y_at, 0, y_size)
    g = span(pointer(read(desk, 1)), 0, y_size)
    out = span(pointer(read(desk, 2)), 0, y_size)
    memory = span(work, 0, memory_size)
    radius = span(memory, radius_at, radius_end - radius_at)
    total = span(memory, total_at, total_end - total_at)
    slope = span(memory, slope_at, slope_end - slope_at)
    sums_0 = span(memory, sums_0_at, sums_0_end - sums_0_at)
    tallies_0 = span(memory, tallies_0_at, tallies_0_end - tallies_0_at)
    limit_0 = view(span(memory, limit_0_at, limit_0_end - limit_0_at), np.float32)
    top_0 = view(span(memory, top_0_at, top_0_end - top_0_at), np.float32)
    lift_0 = view(span(memory, lift_0_at, lift_0_end - lift_0_at), np.float32)
    if read(desk, 3) == 0:
        if seat == 0:
            prepare_0(total, radius, limit_0, top_0)
            release(desk, 1, 0)
        wait(desk, 1)
        # gather from level 0, linf of y
        done = 0
        while True:
            block = draw(desk, seat, seats, 2, blocks_0)
            if block < 0:
                break
            first = block * step_0
            last = min(first + step_0, end_0)
            gather_0(y, g, total, radius, limit_0, top_0, sums_0, tallies_0, first, last, axes_0)
            done += 1
        if complete(desk, 2, done, blocks_0):
            settle_0(total, radius, sums_0, slope)
        return 0
    if seat == 0:
        weigh_0(tallies_0, slope, lift_0)
        release(desk, 2, 0)
    wait(desk, 2)
    # share out over level 0, linf of y
    while True:
        block = draw(desk, seat, seats, 3, blocks_0)
        if block < 0:
            break
        first = block * step_0
        last = min(first + step_0, end_0)
        share_0(y, g, out, total, radius, limit_0, top_0, lift_0, first, last, axes_0)
    return 0
