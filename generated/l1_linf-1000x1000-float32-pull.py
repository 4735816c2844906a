"""l1(linf): takes gradients back through the projection of float32 arrays.

    level 0  l1    of v0: rows (reduced)
    level 1  linf  of y: rows (groups, reduced)

Gradients of radii are gathered from the leaf to the root, then gradients of values are shared out
from the root to the leaf: h has first the ones, then the others.
`rise` is what reaches the value of a group.
Of a group, v is the value, u the radius, a a sum of gradients and n a count of values.
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


# The desk, where the threads of a call meet. Cell 0 counts them, cells 1 and 2 have addresses.
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
def prepare_1(values, radii, limit, top):
    """What the values of level 1, linf of y are compared with, group by group."""
    for group in range(values.size):
        v, u = values[group], radii[group]
        limit[group] = -1 if u <= 0 else np.inf if u >= v else down(u)
        top[group] = v if v > 0 else -1


@register_jitable(fastmath=FAST)
def gather_1(y, g, values, radii, limits, tops, sums, tallies, first, last, axes):
    """Sums over the groups of level 1, linf of y, for the gradients of their radii."""
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
def settle_1(values, radii, sums, slope):
    """The gradients of the radii of level 1, linf of y, from the sums."""
    for group in range(values.size):
        v, u, a = values[group], radii[group], sums[group]
        slope[group] = a if 0 < u < v else 0.0


@register_jitable(fastmath=FAST)
def gather_0(y, x, g, values, radii, sums, tallies, axes):
    """Sums over the groups of level 0, l1 of v0, for the gradients of their radii."""
    n0 = axes[0]
    group = 0
    a = 0.0
    n = 0.0
    if 0 < radii[group] < values[group]:
        at = 0
        y_row = span(y, at, n0)
        x_row = span(x, at, n0)
        g_row = span(g, at, n0)
        for j in range(y_row.size):
            a += chosen(x_row[j] != 0, along(y_row[j], g_row[j]), np.float64(0))
            n += chosen(x_row[j] != 0, np.float64(1), np.float64(0))
    sums[group] = a
    tallies[group] = n


@register_jitable(fastmath=FAST)
def settle_0(values, radii, sums, tallies, slope):
    """The gradients of the radii of level 0, l1 of v0, from the sums."""
    for group in range(values.size):
        v, u, a = values[group], radii[group], sums[group]
        n = tallies[group]
        slope[group] = a / max(n, 1.0) if 0 < u < v else 0.0


@register_jitable(fastmath=FAST)
def weigh_0(values, radii, sums, tallies, floor, mean):
    """What the gradients of the values of level 0, l1 of v0 need to know of their groups."""
    for group in range(values.size):
        v, u, a = values[group], radii[group], sums[group]
        n = tallies[group]
        floor[group] = -1 if u > 0 and u >= v else 0
        mean[group] = a / max(n, 1.0) if 0 < u < v else 0.0


@register_jitable(fastmath=FAST)
def share_0(y, x, g, out, values, radii, floors, means, axes):
    """The gradients of the values of level 0, l1 of v0."""
    n0 = axes[0]
    group = 0
    at = 0
    y_row = span(y, at, n0)
    x_row = span(x, at, n0)
    g_row = span(g, at, n0)
    out_row = span(out, at, n0)
    if radii[group] <= 0:
        for j in range(y_row.size):
            out_row[j] = 0
    elif radii[group] >= values[group]:
        for j in range(y_row.size):
            out_row[j] = g_row[j]
    else:
        floor = floors[group]
        mean = means[group]
        for j in range(y_row.size):
            out_row[j] = chosen(abs(x_row[j]) > floor, g_row[j] - along(y_row[j], mean), np.float64(0))


@register_jitable(fastmath=FAST)
def weigh_1(tallies, rise, lift):
    """What the gradients of the values of level 1, linf of y need to know of their groups."""
    for group in range(rise.size):
        n = tallies[group]
        lift[group] = rise[group] / max(n, 1.0)


@register_jitable(fastmath=FAST)
def share_1(y, g, out, values, radii, limits, tops, lifts, first, last, axes):
    """The gradients of the values of level 1, linf of y."""
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
    """
    cells = fetch(geometry, 47)
    y_size = cells[0]
    blocks_1 = cells[12]
    step_1 = cells[13]
    end_1 = cells[14]
    radius_at = cells[15]
    radius_end = cells[16]
    total_at = cells[17]
    total_end = cells[18]
    v0_at = cells[19]
    v0_end = cells[20]
    u0_at = cells[21]
    u0_end = cells[22]
    slope_at = cells[23]
    slope_end = cells[24]
    h0_at = cells[25]
    h0_end = cells[26]
    sums_0_at = cells[27]
    sums_0_end = cells[28]
    tallies_0_at = cells[29]
    tallies_0_end = cells[30]
    floor_0_at = cells[31]
    floor_0_end = cells[32]
    mean_0_at = cells[33]
    mean_0_end = cells[34]
    sums_1_at = cells[35]
    sums_1_end = cells[36]
    tallies_1_at = cells[37]
    tallies_1_end = cells[38]
    limit_1_at = cells[39]
    limit_1_end = cells[40]
    top_1_at = cells[41]
    top_1_end = cells[42]
    lift_1_at = cells[43]
    lift_1_end = cells[44]
    seats = cells[45]
    memory_size = cells[46]
    axes_0 = cells[1 : 5]
    axes_1 = cells[5 : 12]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    y = span(y_at, 0, y_size)
    g = span(pointer(read(desk, 1)), 0, y_size)
    out = span(pointer(read(desk, 2)), 0, y_size)
    memory = span(work, 0, memory_size)
    radius = span(memory, radius_at, radius_end - radius_at)
    total = span(memory, total_at, total_end - total_at)
    v0 = span(memory, v0_at, v0_end - v0_at)
    u0 = span(memory, u0_at, u0_end - u0_at)
    slope = span(memory, slope_at, slope_end - slope_at)
    h0 = span(memory, h0_at, h0_end - h0_at)
    sums_0 = span(memory, sums_0_at, sums_0_end - sums_0_at)
    tallies_0 = span(memory, tallies_0_at, tallies_0_end - tallies_0_at)
    floor_0 = span(memory, floor_0_at, floor_0_end - floor_0_at)
    mean_0 = span(memory, mean_0_at, mean_0_end - mean_0_at)
    sums_1 = span(memory, sums_1_at, sums_1_end - sums_1_at)
    tallies_1 = span(memory, tallies_1_at, tallies_1_end - tallies_1_at)
    limit_1 = view(span(memory, limit_1_at, limit_1_end - limit_1_at), np.float32)
    top_1 = view(span(memory, top_1_at, top_1_end - top_1_at), np.float32)
    lift_1 = view(span(memory, lift_1_at, lift_1_end - lift_1_at), np.float32)
    if seat == 0:
        prepare_1(v0, u0, limit_1, top_1)
        release(desk, 1, 0)
    wait(desk, 1)
    # gather from level 1, linf of y
    done = 0
    while True:
        block = draw(desk, seat, seats, 2, blocks_1)
        if block < 0:
            break
        first = block * step_1
        last = min(first + step_1, end_1)
        gather_1(y, g, v0, u0, limit_1, top_1, sums_1, tallies_1, first, last, axes_1)
        done += 1
    if complete(desk, 2, done, blocks_1):
        settle_1(v0, u0, sums_1, h0)
        gather_0(v0, u0, h0, total, radius, sums_0, tallies_0, axes_0)
        settle_0(total, radius, sums_0, tallies_0, slope)
        weigh_0(total, radius, sums_0, tallies_0, floor_0, mean_0)
        share_0(v0, u0, h0, h0, total, radius, floor_0, mean_0, axes_0)
        weigh_1(tallies_1, h0, lift_1)
        release(desk, 2, 0)
    wait(desk, 2)
    # share out over level 1, linf of y
    while True:
        block = draw(desk, seat, seats, 3, blocks_1)
        if block < 0:
            break
        first = block * step_1
        last = min(first + step_1, end_1)
        share_1(y, g, out, v0, u0, limit_1, top_1, lift_1, first, last, axes_1)
    return 0
