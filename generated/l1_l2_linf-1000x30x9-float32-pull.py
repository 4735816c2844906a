"""l1(l2(linf)): takes gradients back through the projection of float32 arrays.

    level 0  l1    of v0: rows (reduced)
    level 1  l2    of v1: rows (groups, reduced)
    level 2  linf  of y: packed (groups, reduced)

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
from numba.core.cgutils import ir
from numba.extending import intrinsic, register_jitable

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


@intrinsic
def spread_9(typing_context, limits, group, tile):
    """tile[9 * group + i] = limits[group + i // 9] for 16 groups: one shuffle for each vector."""

    def codegen(context, builder, signature, args):
        limits, tile = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2)
        )
        word, lane = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(context.get_value_type(types.float32), 16)
        first = builder.bitcast(builder.gep(limits, [args[1]]), vector.as_pointer())
        values = builder.load(first, align=4)
        at = builder.gep(tile, [builder.mul(args[1], word(9))])
        for i in range(0, 144, 16):
            lanes = ir.Constant(ir.VectorType(lane, 16), [(i + j) // 9 for j in range(16)])
            part = builder.bitcast(builder.gep(at, [word(i)]), vector.as_pointer())
            builder.store(builder.shuffle_vector(values, values, lanes), part, align=4)
        return context.get_dummy_value()

    return types.void(limits, types.int64, tile), codegen


@register_jitable(fastmath=FAST)
def prepare_2(values, radii, limit, top):
    """What the values of level 2, linf of y are compared with, group by group."""
    for group in range(values.size):
        v, u = values[group], radii[group]
        limit[group] = -1 if u <= 0 else np.inf if u >= v else down(u)
        top[group] = v if v > 0 else -1


@register_jitable(fastmath=FAST)
def gather_2(y, g, limits, tops, sums, tallies, scratch, first, last, axes):
    """Sums over the groups of level 2, linf of y, for the gradients of their radii."""
    memory = view(scratch, np.float32)
    a = span(memory, 0, 2080)
    n = span(memory, 2080, 2080)
    limit_row = span(memory, 4160, 2080)
    top_row = span(memory, 6240, 2080)
    at = 0
    for start in range(first, last, 224):
        stop = min(start + 224, last)
        y_row = span(y, at + start * 9, (stop - start) * 9)
        g_row = span(g, at + start * 9, (stop - start) * 9)
        known = span(limits, start, stop - start)
        for group in range(0, known.size, 16):
            spread_9(known, group, limit_row)
        known = span(tops, start, stop - start)
        for group in range(0, known.size, 16):
            spread_9(known, group, top_row)
        for j in range(y_row.size):
            limit = limit_row[j]
            a[j] = chosen(abs(y_row[j]) > limit, along(y_row[j], g_row[j]), np.float32(0))
        for j in range(y_row.size):
            top = top_row[j]
            n[j] = chosen(abs(y_row[j]) == top, np.float32(1), np.float32(0))
        for j in range(y_row.size - 2):
            a[j] = a[j] + a[j + 1] + a[j + 2]
        for j in range(y_row.size - 2):
            n[j] = n[j] + n[j + 1] + n[j + 2]
        for group in range(stop - start):
            j = 9 * group
            sums[start + group] = np.float64(a[j] + a[j + 3] + a[j + 6])
            tallies[start + group] = np.float64(n[j] + n[j + 3] + n[j + 6])


@register_jitable(fastmath=FAST)
def settle_2(values, radii, sums, slope):
    """The gradients of the radii of level 2, linf of y, from the sums."""
    for group in range(values.size):
        v, u, a = values[group], radii[group], sums[group]
        slope[group] = a if 0 < u < v else 0.0


@register_jitable(fastmath=FAST)
def gather_1(y, g, values, radii, sums, axes):
    """Sums over the groups of level 1, l2 of v1, for the gradients of their radii."""
    n0, n1, s0 = axes[0], axes[1], axes[2]
    for i0 in range(0, n0):
        group = i0
        a = 0.0
        if 0 < radii[group] < values[group]:
            at = i0 * s0
            y_row = span(y, at, n1)
            g_row = span(g, at, n1)
            for j in range(y_row.size):
                a += np.float64(y_row[j]) * np.float64(g_row[j])
        sums[group] = a


@register_jitable(fastmath=FAST)
def settle_1(values, radii, sums, slope):
    """The gradients of the radii of level 1, l2 of v1, from the sums."""
    for group in range(values.size):
        v, u, a = values[group], radii[group], sums[group]
        slope[group] = a / v if 0 < u < v else 0.0


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
def weigh_1(values, radii, sums, rise, scale, tilt):
    """What the gradients of the values of level 1, l2 of v1 need to know of their groups."""
    for group in range(values.size):
        v, u, a = values[group], radii[group], sums[group]
        scale[group] = 0.0 if u <= 0 else 1.0 if u >= v else u / v
        tilt[group] = -u / v * (a / v / v) if 0 < u < v else 0.0
        if v > 0:
            tilt[group] += rise[group] / v


@register_jitable(fastmath=FAST)
def share_1(y, g, out, values, radii, scales, tilts, axes):
    """The gradients of the values of level 1, l2 of v1."""
    n0, n1, s0 = axes[0], axes[1], axes[2]
    for i0 in range(0, n0):
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
            scale = scales[group]
            tilt = tilts[group]
            for j in range(y_row.size):
                out_row[j] = g_row[j] * scale + y_row[j] * tilt


@register_jitable(fastmath=FAST)
def weigh_2(tallies, rise, lift):
    """What the gradients of the values of level 2, linf of y need to know of their groups."""
    for group in range(rise.size):
        n = tallies[group]
        lift[group] = rise[group] / max(n, 1.0)


@register_jitable(fastmath=FAST)
def share_2(y, g, out, limits, tops, lifts, scratch, first, last, axes):
    """The gradients of the values of level 2, linf of y."""
    memory = view(scratch, np.float32)
    limit_row = span(memory, 0, 2080)
    top_row = span(memory, 2080, 2080)
    lift_row = span(memory, 4160, 2080)
    at = 0
    for start in range(first, last, 224):
        stop = min(start + 224, last)
        y_row = span(y, at + start * 9, (stop - start) * 9)
        g_row = span(g, at + start * 9, (stop - start) * 9)
        out_row = span(out, at + start * 9, (stop - start) * 9)
        known = span(limits, start, stop - start)
        for group in range(0, known.size, 16):
            spread_9(known, group, limit_row)
        known = span(tops, start, stop - start)
        for group in range(0, known.size, 16):
            spread_9(known, group, top_row)
        known = span(lifts, start, stop - start)
        for group in range(0, known.size, 16):
            spread_9(known, group, lift_row)
        for j in range(y_row.size):
            limit = limit_row[j]
            top = top_row[j]
            lift = lift_row[j]
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
    cells = fetch(geometry, 68)
    y_size = cells[0]
    blocks_2 = cells[19]
    step_2 = cells[20]
    end_2 = cells[21]
    radius_at = cells[22]
    radius_end = cells[23]
    total_at = cells[24]
    total_end = cells[25]
    v0_at = cells[26]
    v0_end = cells[27]
    u0_at = cells[28]
    u0_end = cells[29]
    v1_at = cells[30]
    v1_end = cells[31]
    u1_at = cells[32]
    u1_end = cells[33]
    slope_at = cells[34]
    slope_end = cells[35]
    h0_at = cells[36]
    h0_end = cells[37]
    h1_at = cells[38]
    h1_end = cells[39]
    sums_0_at = cells[40]
    sums_0_end = cells[41]
    tallies_0_at = cells[42]
    tallies_0_end = cells[43]
    floor_0_at = cells[44]
    floor_0_end = cells[45]
    mean_0_at = cells[46]
    mean_0_end = cells[47]
    sums_1_at = cells[48]
    sums_1_end = cells[49]
    scale_1_at = cells[50]
    scale_1_end = cells[51]
    tilt_1_at = cells[52]
    tilt_1_end = cells[53]
    sums_2_at = cells[54]
    sums_2_end = cells[55]
    tallies_2_at = cells[56]
    tallies_2_end = cells[57]
    limit_2_at = cells[58]
    limit_2_end = cells[59]
    top_2_at = cells[60]
    top_2_end = cells[61]
    lift_2_at = cells[62]
    lift_2_end = cells[63]
    scratch_at = cells[64]
    scratch_size = cells[65]
    seats = cells[66]
    memory_size = cells[67]
    axes_0 = cells[1 : 5]
    axes_1 = cells[5 : 12]
    axes_2 = cells[12 : 19]
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
    v1 = span(memory, v1_at, v1_end - v1_at)
    u1 = span(memory, u1_at, u1_end - u1_at)
    slope = span(memory, slope_at, slope_end - slope_at)
    h0 = span(memory, h0_at, h0_end - h0_at)
    h1 = span(memory, h1_at, h1_end - h1_at)
    sums_0 = span(memory, sums_0_at, sums_0_end - sums_0_at)
    tallies_0 = span(memory, tallies_0_at, tallies_0_end - tallies_0_at)
    floor_0 = span(memory, floor_0_at, floor_0_end - floor_0_at)
    mean_0 = span(memory, mean_0_at, mean_0_end - mean_0_at)
    sums_1 = span(memory, sums_1_at, sums_1_end - sums_1_at)
    scale_1 = span(memory, scale_1_at, scale_1_end - scale_1_at)
    tilt_1 = span(memory, tilt_1_at, tilt_1_end - tilt_1_at)
    sums_2 = span(memory, sums_2_at, sums_2_end - sums_2_at)
    tallies_2 = span(memory, tallies_2_at, tallies_2_end - tallies_2_at)
    limit_2 = view(span(memory, limit_2_at, limit_2_end - limit_2_at), np.float32)
    top_2 = view(span(memory, top_2_at, top_2_end - top_2_at), np.float32)
    lift_2 = view(span(memory, lift_2_at, lift_2_end - lift_2_at), np.float32)
    scratch = span(memory, scratch_at + seat * scratch_size, scratch_size)
    if seat == 0:
        prepare_2(v1, u1, limit_2, top_2)
        release(desk, 1, 0)
    wait(desk, 1)
    # gather from level 2, linf of y
    done = 0
    while True:
        block = draw(desk, seat, seats, 2, blocks_2)
        if block < 0:
            break
        first = block * step_2
        last = min(first + step_2, end_2)
        gather_2(y, g, limit_2, top_2, sums_2, tallies_2, scratch, first, last, axes_2)
        done += 1
    if complete(desk, 2, done, blocks_2):
        settle_2(v1, u1, sums_2, h1)
        gather_1(v1, h1, v0, u0, sums_1, axes_1)
        settle_1(v0, u0, sums_1, h0)
        gather_0(v0, u0, h0, total, radius, sums_0, tallies_0, axes_0)
        settle_0(total, radius, sums_0, tallies_0, slope)
        weigh_0(total, radius, sums_0, tallies_0, floor_0, mean_0)
        share_0(v0, u0, h0, h0, total, radius, floor_0, mean_0, axes_0)
        weigh_1(v0, u0, sums_1, h0, scale_1, tilt_1)
        share_1(v1, h1, h1, v0, u0, scale_1, tilt_1, axes_1)
        weigh_2(tallies_2, h1, lift_2)
        release(desk, 2, 0)
    wait(desk, 2)
    # share out over level 2, linf of y
    while True:
        block = draw(desk, seat, seats, 3, blocks_2)
        if block < 0:
            break
        first = block * step_2
        last = min(first + step_2, end_2)
        share_2(y, g, out, limit_2, top_2, lift_2, scratch, first, last, axes_2)
    return 0
