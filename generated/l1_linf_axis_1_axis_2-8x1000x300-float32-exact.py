"""l1(linf(axis=1), axis=2): projects float32 arrays on the nearest point of the ball.

    level 0  l1    of v0: rows (groups, reduced)
    level 1  linf  of y: columns (groups, reduced, groups); threshold by joint

Values are aggregated from the leaf to the root, then the limits of all groups are searched for
together, and the groups are clipped. The threads share a sweep's
blocks, which depend on the shape alone: so results do not depend on the threads.
Written by projgen, codegen 2.
"""

import numpy as np
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
LARGEST = 1e34  # norm: partial sums in float32 have room above it
MAGNITUDE_32 = np.int32(0x7FFFFFFF)  # all of a float's bits but its sign


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


# The desk, where the threads of a call meet. Cell 0 counts them, cell 1 says whether the call resumes
# one whose norms are in the workspace. Each phase has a cell of the blocks that are done and one that
# opens the next; each thread's share of the blocks has a counter.
SHARES = 432


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


@register_jitable
def down(x):
    """The largest float32 that is not above x >= 0."""
    near = np.float32(x)
    return near if near <= x else view(np.int32(view(near, np.int32) - 1), np.float32)


@register_jitable(fastmath=FAST)
def check(total, radius):
    """What to do about norms `total`: 0 project, 1 nothing, 2 find out why they are out of range.

    A negative radius asks for the norms alone.
    """
    inside = True
    for b in range(total.size):
        if not total[b] <= LARGEST:
            return 2
        inside = inside and total[b] <= radius[b]
    return 1 if inside or radius[0] < 0 else 0


@register_jitable(fastmath=FAST)
def aggregate_1(y, slot, first, last, axes):
    """Accumulate part of the groups of level 1, linf of y."""
    n0, n2, s0, s1 = axes[0], axes[2], axes[3], axes[4]
    bits = view(y, np.int32)
    for i0 in range(0, n0):
        span(slot, i0 * n2, n2)[:] = 0
    for i0 in range(0, n0):
        values = span(slot, i0 * n2, n2)
        whole = last - (last - first) % 4
        for i1 in range(first, whole, 4):
            at = i0 * s0 + i1 * s1
            row_0 = span(bits, at, n2)
            at_1 = at + s1
            row_1 = span(bits, at_1, n2)
            at_2 = at_1 + s1
            row_2 = span(bits, at_2, n2)
            at_3 = at_2 + s1
            row_3 = span(bits, at_3, n2)
            for j in range(values.size):
                values[j] = max(values[j], max(max(np.int32(row_0[j] & MAGNITUDE_32), np.int32(row_1[j] & MAGNITUDE_32)), max(np.int32(row_2[j] & MAGNITUDE_32), np.int32(row_3[j] & MAGNITUDE_32))))
        for i1 in range(whole, last):
            at = i0 * s0 + i1 * s1
            row = span(bits, at, n2)
            for j in range(values.size):
                values[j] = max(values[j], np.int32(row[j] & MAGNITUDE_32))


@register_jitable(fastmath=FAST)
def combine_1(slots, blocks, v0):
    """Join what the blocks accumulated of level 1, linf of y."""
    columns = v0.size
    for b in range(1, blocks):
        slot = span(slots, b * columns, columns)
        for j in range(columns):
            slots[j] = max(slots[j], slot[j])
    for g in range(columns):
        v0[g] = np.float64(view(np.int32(slots[g]), np.float32))


@register_jitable(fastmath=FAST)
def aggregate_0(v0, total, axes):
    """The values of the groups of level 0, l1 of v0."""
    n0, n1, s0 = axes[0], axes[1], axes[2]
    for i0 in range(0, n0):
        at = i0 * s0
        row = span(v0, at, n1)
        a = 0.0
        for j in range(row.size):
            a = a + np.float64(abs(row[j]))
        total[i0] = a


@register_jitable(fastmath=FAST)
def start(v0, total, radius, limit, count, theta, warm, axes):
    """Where the search starts: if warm, from the limits that are there. A count of -1: found."""
    n0, n1, s0, s1 = axes[0], axes[1], axes[2], axes[3]
    theta[:] = 0
    for i0 in range(0, n0):
        for i1 in range(0, n1):
            g = i0 * s0 + i1 * s1
            b = i0
            if radius[b] >= total[b]:
                limit[g] = np.inf
                count[g] = -1
            elif radius[b] <= 0:
                limit[g] = 0
                count[g] = -1
            else:
                if not (warm and 0 < limit[g] < v0[g]):
                    limit[g] = v0[g] * (radius[b] / total[b])  # its part of the radius, by its value
                count[g] = 0


@register_jitable(fastmath=FINITE)
def exceed(y, limit, count, excess, above, first, last, axes):
    """Accumulate how far, and how often, the values of level 1, linf of y exceed their limits."""
    n0, n2, s0, s1 = axes[0], axes[2], axes[3], axes[4]
    for i0 in range(0, n0):
        span(excess, i0 * n2, n2)[:] = 0
        span(above, i0 * n2, n2)[:] = 0
    for i0 in range(0, n0):
        limits = span(limit, i0 * n2, n2)
        excesses = span(excess, i0 * n2, n2)
        aboves = span(above, i0 * n2, n2)
        whole = last - (last - first) % 16
        for i1 in range(first, whole, 16):
            at = i0 * s0 + i1 * s1
            row_0 = span(y, at, n2)
            at_1 = at + s1
            row_1 = span(y, at_1, n2)
            at_2 = at_1 + s1
            row_2 = span(y, at_2, n2)
            at_3 = at_2 + s1
            row_3 = span(y, at_3, n2)
            at_4 = at_3 + s1
            row_4 = span(y, at_4, n2)
            at_5 = at_4 + s1
            row_5 = span(y, at_5, n2)
            at_6 = at_5 + s1
            row_6 = span(y, at_6, n2)
            at_7 = at_6 + s1
            row_7 = span(y, at_7, n2)
            at_8 = at_7 + s1
            row_8 = span(y, at_8, n2)
            at_9 = at_8 + s1
            row_9 = span(y, at_9, n2)
            at_10 = at_9 + s1
            row_10 = span(y, at_10, n2)
            at_11 = at_10 + s1
            row_11 = span(y, at_11, n2)
            at_12 = at_11 + s1
            row_12 = span(y, at_12, n2)
            at_13 = at_12 + s1
            row_13 = span(y, at_13, n2)
            at_14 = at_13 + s1
            row_14 = span(y, at_14, n2)
            at_15 = at_14 + s1
            row_15 = span(y, at_15, n2)
            for j in range(limits.size):
                t = limits[j]
                e = np.float32(0)
                n = np.float32(0)
                a = abs(row_0[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_1[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_2[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_3[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_4[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_5[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_6[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_7[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_8[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_9[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_10[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_11[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_12[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_13[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_14[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                a = abs(row_15[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                excesses[j] += np.float64(e)
                aboves[j] += np.float64(n)
        for i1 in range(whole, last):
            at = i0 * s0 + i1 * s1
            row_0 = span(y, at, n2)
            for j in range(limits.size):
                t = limits[j]
                e = np.float32(0)
                n = np.float32(0)
                a = abs(row_0[j]) - t
                e += a if a > 0 else np.float32(0)
                n += np.float32(1) if a > 0 else np.float32(0)
                excesses[j] += np.float64(e)
                aboves[j] += np.float64(n)


@register_jitable(fastmath=FAST)
def step(excesses, counts, blocks, v0, radius, limit, count, theta, intercept, slope, axes):
    """One Newton step for all limits; returns whether the search goes on."""
    n0, n1, s0, s1 = axes[0], axes[1], axes[2], axes[3]
    groups = v0.size
    m = span(excesses, 0, groups)  # the tangents: m - theta * c
    c = span(counts, 0, groups)
    moved = False
    for g in range(groups):
        if count[g] < 0:
            m[g] = 0
            c[g] = 1
            continue
        e = 0.0
        k = 0.0
        for i in range(blocks):
            e += excesses[i * groups + g]
            k += counts[i * groups + g]
        moved = moved or k != count[g]
        count[g] = k
        if k > 0:
            m[g] = np.float64(limit[g]) + e / k
            c[g] = 1 / k
        else:  # the start was right of every value, where the steepest tangent is this one
            m[g] = v0[g]
            c[g] = 1
    grown = False
    first, rising = True, True
    while rising:  # as theta grows, groups leave, and it grows again
        rising = False
        intercept[:] = 0
        slope[:] = 0
        for i0 in range(0, n0):
            for i1 in range(0, n1):
                g = i0 * s0 + i1 * s1
                b = i0
                if m[g] > theta[b] * c[g]:
                    intercept[b] += m[g]
                    slope[b] += c[g]
        for b in range(theta.size):
            if slope[b] > 0:
                found = max((intercept[b] - radius[b]) / slope[b], 0.0)  # 0: all tangents are far too low
                rising = rising or first or found > theta[b]
                grown = grown or found > theta[b] or found == 0
                theta[b] = found if first else max(theta[b], found)
        first = False
    searching = moved and grown
    intercept[:] = 0
    for i0 in range(0, n0):
        for i1 in range(0, n1):
            g = i0 * s0 + i1 * s1
            b = i0
            if count[g] >= 0:
                m[g] = max(m[g] - theta[b] * c[g], 0.0)  # the limit itself from here on
                intercept[b] += m[g]
    for b in range(theta.size):  # limits that are small beside theta add up with its rounding errors
        slope[b] = radius[b] / intercept[b] if intercept[b] > radius[b] else 1.0
    for i0 in range(0, n0):
        for i1 in range(0, n1):
            g = i0 * s0 + i1 * s1
            b = i0
            if count[g] >= 0:
                limit[g] = m[g] if searching else down(m[g] * slope[b])
    return 1 if searching else 0


@register_jitable(fastmath=FAST)
def project_1(y, x, limit, first, last, axes):
    """Project the groups of level 1, linf of y."""
    n0, n2, s0, s1, t0, t1 = axes[0], axes[2], axes[3], axes[4], axes[6], axes[7]
    for i0 in range(0, n0):
        limits = span(limit, i0 * n2, n2)
        for i1 in range(first, last):
            at = i0 * s0 + i1 * s1
            to = i0 * t0 + i1 * t1
            row = span(y, at, n2)
            out = span(x, to, n2)
            for j in range(limits.size):
                t = limits[j]
                out[j] = min(max(row[j], -t), t)


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
def project(y_at, x_at, geometry, work, desk):
    """Take part in one projection; any number of threads may, with the same arguments.

    `geometry` holds extents and strides, `work` the radii and room for the levels' values, `desk`
    zeros. Returns 0 when x is written, 1 when y is inside its ball, 2 when its norm is out of
    range: then nothing is written.

    A 1 in cell 1 of the desk: `work` has the norms already, from a call for them alone, so y is not
    swept for them again. A 1 in cell 2: it has the limits of an earlier call to start from.
    """
    cells = fetch(geometry, 57)
    y_size = cells[0]
    x_size = cells[1]
    blocks_1 = cells[27]
    step_1 = cells[28]
    end_1 = cells[29]
    radius_at = cells[33]
    radius_end = cells[34]
    total_at = cells[35]
    total_end = cells[36]
    v0_at = cells[37]
    v0_end = cells[38]
    slots_1_at = cells[39]
    slots_1_end = cells[40]
    excesses_1_at = cells[41]
    excesses_1_end = cells[42]
    counts_1_at = cells[43]
    counts_1_end = cells[44]
    count_1_at = cells[45]
    count_1_end = cells[46]
    theta_at = cells[47]
    theta_end = cells[48]
    intercept_at = cells[49]
    intercept_end = cells[50]
    slope_at = cells[51]
    slope_end = cells[52]
    limit_1_at = cells[53]
    limit_1_end = cells[54]
    seats = cells[55]
    memory_size = cells[56]
    axes_0 = cells[2 : 9]
    axes_1 = cells[16 : 26]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    resumes = read(desk, 1) != 0
    warm = read(desk, 2) != 0
    y = span(y_at, 0, y_size)
    x = span(x_at, 0, x_size)
    memory = span(work, 0, memory_size)
    radius = span(memory, radius_at, radius_end - radius_at)
    total = span(memory, total_at, total_end - total_at)
    v0 = span(memory, v0_at, v0_end - v0_at)
    slots_1 = view(span(memory, slots_1_at, slots_1_end - slots_1_at), np.int32)
    excesses_1 = span(memory, excesses_1_at, excesses_1_end - excesses_1_at)
    counts_1 = span(memory, counts_1_at, counts_1_end - counts_1_at)
    count_1 = span(memory, count_1_at, count_1_end - count_1_at)
    theta = span(memory, theta_at, theta_end - theta_at)
    intercept = span(memory, intercept_at, intercept_end - intercept_at)
    slope = span(memory, slope_at, slope_end - slope_at)
    limit_1 = view(span(memory, limit_1_at, limit_1_end - limit_1_at), np.float32)
    # sweep 1: aggregate level 1, linf of y
    last_one = seat == 0
    if not resumes:
        done = 0
        while True:
            block = draw(desk, seat, seats, 1, blocks_1)
            if block < 0:
                break
            first = block * step_1
            last = min(first + step_1, end_1)
            aggregate_1(y, span(slots_1, block * v0.size, v0.size), first, last, axes_1)
            done += 1
        last_one = complete(desk, 1, done, blocks_1)
        if last_one:  # the levels above, up to the root
            combine_1(slots_1, blocks_1, v0)
            aggregate_0(v0, total, axes_0)
    if last_one:
        status = check(total, radius)
        if status == 0:
            start(v0, total, radius, limit_1, count_1, theta, warm, axes_0)
        release(desk, 1, status)
    status = wait(desk, 1)
    if status != 0:
        return status
    # the thresholds of level 1, linf of y
    for turn in range(24):
        done = 0
        while True:
            block = draw(desk, seat, seats, 2 + turn, blocks_1)
            if block < 0:
                break
            first = block * step_1
            last = min(first + step_1, end_1)
            exceed(y, limit_1, count_1, span(excesses_1, block * v0.size, v0.size), span(counts_1, block * v0.size, v0.size), first, last, axes_1)
            done += 1
        if complete(desk, 2 + turn, done, blocks_1):
            searching = step(excesses_1, counts_1, blocks_1, v0, radius, limit_1, count_1, theta, intercept, slope, axes_0)
            while searching > 0 and turn == 23:  # so long a search is rare: one thread ends it
                for block in range(blocks_1):
                    first = block * step_1
                    last = min(first + step_1, end_1)
                    exceed(y, limit_1, count_1, span(excesses_1, block * v0.size, v0.size), span(counts_1, block * v0.size, v0.size), first, last, axes_1)
                searching = step(excesses_1, counts_1, blocks_1, v0, radius, limit_1, count_1, theta, intercept, slope, axes_0)
            release(desk, 2 + turn, searching)
        if wait(desk, 2 + turn) == 0:
            break
    # sweep 2: project level 1, linf of y
    while True:
        block = draw(desk, seat, seats, 26, blocks_1)
        if block < 0:
            break
        first = block * step_1
        last = min(first + step_1, end_1)
        project_1(y, x, limit_1, first, last, axes_1)
    return 0
