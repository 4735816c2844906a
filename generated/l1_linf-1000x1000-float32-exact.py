"""l1(linf): projects float32 arrays on the nearest point of the ball.

    level 0  l1    of v0: rows (reduced)
    level 1  linf  of y: rows (groups, reduced); threshold by joint

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
def aggregate_1(y, v0, first, last, axes):
    """The values of the groups of level 1, linf of y."""
    n1, s0 = axes[1], axes[2]
    bits = view(y, np.int32)
    for i0 in range(first, last):
        at = i0 * s0
        row = span(bits, at, n1)
        a = np.int32(0)
        for j in range(row.size):
            a = max(a, np.int32(row[j] & MAGNITUDE_32))
        v0[i0] = np.float64(view(np.int32(a), np.float32))


@register_jitable(fastmath=FAST)
def aggregate_0(v0, total, axes):
    """The values of the groups of level 0, l1 of v0."""
    n0 = axes[0]
    at = 0
    row = span(v0, at, n0)
    a = 0.0
    for j in range(row.size):
        a = a + np.float64(abs(row[j]))
    total[0] = a


@register_jitable(fastmath=FAST)
def start(v0, total, radius, limit, count, theta, warm, axes):
    """Where the search starts: if warm, from the limits that are there. A count of -1: found."""
    n0, s0 = axes[0], axes[1]
    theta[:] = 0
    for i0 in range(0, n0):
        g = i0 * s0
        b = 0
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
    n1, s0 = axes[1], axes[2]
    for i0 in range(first, last):
        excess[i0] = 0
        above[i0] = 0
    for i0 in range(first, last):
        g = i0
        if count[g] >= 0:
            at = i0 * s0
            row = span(y, at, n1)
            t = limit[g]
            for start in range(0, row.size, 1024):
                part = row[start : start + 1024]
                part_excess = np.float32(0)
                part_above = np.float32(0)
                for j in range(part.size):
                    a = abs(part[j]) - t
                    part_excess += a if a > 0 else np.float32(0)
                    part_above += np.float32(1) if a > 0 else np.float32(0)
                excess[g] += np.float64(part_excess)
                above[g] += np.float64(part_above)


@register_jitable(fastmath=FAST)
def step(excesses, counts, blocks, v0, radius, limit, count, theta, intercept, slope, axes):
    """One Newton step for all limits; returns whether the search goes on."""
    n0, s0 = axes[0], axes[1]
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
            g = i0 * s0
            b = 0
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
        g = i0 * s0
        b = 0
        if count[g] >= 0:
            m[g] = max(m[g] - theta[b] * c[g], 0.0)  # the limit itself from here on
            intercept[b] += m[g]
    for b in range(theta.size):  # limits that are small beside theta add up with its rounding errors
        slope[b] = radius[b] / intercept[b] if intercept[b] > radius[b] else 1.0
    for i0 in range(0, n0):
        g = i0 * s0
        b = 0
        if count[g] >= 0:
            limit[g] = m[g] if searching else down(m[g] * slope[b])
    return 1 if searching else 0


@register_jitable(fastmath=FAST)
def project_1(y, x, limit, first, last, axes):
    """Project the groups of level 1, linf of y."""
    n1, s0, t0 = axes[1], axes[2], axes[4]
    for i0 in range(first, last):
        at = i0 * s0
        to = i0 * t0
        row = span(y, at, n1)
        out = span(x, to, n1)
        t = limit[i0]
        for j in range(row.size):
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
    cells = fetch(geometry, 49)
    y_size = cells[0]
    x_size = cells[1]
    blocks_1 = cells[21]
    step_1 = cells[22]
    end_1 = cells[23]
    radius_at = cells[27]
    radius_end = cells[28]
    total_at = cells[29]
    total_end = cells[30]
    v0_at = cells[31]
    v0_end = cells[32]
    excesses_1_at = cells[33]
    excesses_1_end = cells[34]
    counts_1_at = cells[35]
    counts_1_end = cells[36]
    count_1_at = cells[37]
    count_1_end = cells[38]
    theta_at = cells[39]
    theta_end = cells[40]
    intercept_at = cells[41]
    intercept_end = cells[42]
    slope_at = cells[43]
    slope_end = cells[44]
    limit_1_at = cells[45]
    limit_1_end = cells[46]
    seats = cells[47]
    memory_size = cells[48]
    axes_0 = cells[2 : 6]
    axes_1 = cells[13 : 20]
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
            aggregate_1(y, v0, first, last, axes_1)
            done += 1
        last_one = complete(desk, 1, done, blocks_1)
        if last_one:  # the levels above, up to the root
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
            exceed(y, limit_1, count_1, excesses_1, counts_1, first, last, axes_1)
            done += 1
        if complete(desk, 2 + turn, done, blocks_1):
            searching = step(excesses_1, counts_1, 1, v0, radius, limit_1, count_1, theta, intercept, slope, axes_0)
            while searching > 0 and turn == 23:  # so long a search is rare: one thread ends it
                for block in range(blocks_1):
                    first = block * step_1
                    last = min(first + step_1, end_1)
                    exceed(y, limit_1, count_1, excesses_1, counts_1, first, last, axes_1)
                searching = step(excesses_1, counts_1, 1, v0, radius, limit_1, count_1, theta, intercept, slope, axes_0)
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
