"""l2(l1(axis=0)): projects float32 arrays.

    level 0  l2    of v0: rows (reduced)
    level 1  l1    of y: columns (reduced, groups); threshold by transpose

Values are aggregated from the leaf to the root, then each level is projected, from the root to
the leaf, on the radii that the level above leaves to its groups. The threads share a level's
blocks, which depend on the shape alone: so results do not depend on the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from numba import cfunc, types
from numba.core.cgutils import ir
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
LARGEST = 1e34  # norm: partial sums in float32 have room above it


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


@register_jitable(fastmath=FAST)
def square(x):
    """x * x in float64."""
    return np.float64(x) * np.float64(x)


@register_jitable
def up(x):
    """The smallest float32 that is not below x, or 0."""
    near = np.float32(max(x, 0.0))
    return near if near >= x else view(np.int32(view(near, np.int32) + 1), np.float32)


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
    """Accumulate part of the groups of level 1, l1 of y."""
    n1, s0 = axes[1], axes[2]
    span(slot, 0, n1)[:] = 0
    values = span(slot, 0, n1)
    whole = last - (last - first) % 4
    for i0 in range(first, whole, 4):
        at = i0 * s0
        row_0 = span(y, at, n1)
        at_1 = at + s0
        row_1 = span(y, at_1, n1)
        at_2 = at_1 + s0
        row_2 = span(y, at_2, n1)
        at_3 = at_2 + s0
        row_3 = span(y, at_3, n1)
        for j in range(values.size):
            values[j] = values[j] + (np.float64(abs(row_0[j])) + np.float64(abs(row_1[j])) + np.float64(abs(row_2[j])) + np.float64(abs(row_3[j])))
    for i0 in range(whole, last):
        at = i0 * s0
        row = span(y, at, n1)
        for j in range(values.size):
            values[j] = values[j] + np.float64(abs(row[j]))


@register_jitable(fastmath=FAST)
def combine_1(slots, blocks, v0):
    """Join what the blocks accumulated of level 1, l1 of y."""
    columns = v0.size
    for b in range(1, blocks):
        slot = span(slots, b * columns, columns)
        for j in range(columns):
            slots[j] = slots[j] + slot[j]
    for g in range(columns):
        v0[g] = slots[g]


@register_jitable(fastmath=FAST)
def aggregate_0(v0, total, axes):
    """The values of the groups of level 0, l2 of v0."""
    n0 = axes[0]
    at = 0
    row = span(v0, at, n0)
    a = 0.0
    for j in range(row.size):
        a = a + square(row[j])
    total[0] = math.sqrt(a)


@intrinsic
def turn_float32(typing_context, source, at, step, target, to, pitch):
    """target[to + pitch * c + r] = source[at + step * r + c] for 8 values c of 8 rows r: shuffles
    within pairs, fours and eights.
    """

    def codegen(context, builder, signature, args):
        source, target = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3)
        )
        word, lane = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(context.get_value_type(types.float32), 8)
        lanes = ir.VectorType(lane, 8)

        def row(array, start, step, r):
            at = builder.add(start, builder.mul(step, word(r)))
            return builder.bitcast(builder.gep(array, [at]), vector.as_pointer())

        parts = [builder.load(row(source, args[1], args[2], r), align=4) for r in range(8)]
        for near in (1, 2, 4):
            masks = [ir.Constant(lanes, [(j & ~near) + high + (8 if j & near else 0) for j in range(8)]) for high in (0, near)]
            pairs = [(parts[i & ~near], parts[i | near], masks[(i & near) > 0]) for i in range(8)]
            parts = [builder.shuffle_vector(*pair) for pair in pairs]
        for c, part in enumerate(parts):
            builder.store(part, row(target, args[4], args[5], c), align=4)
        return context.get_dummy_value()

    index = types.int64
    return types.void(source, index, index, target, index, index), codegen


@register_jitable
def cross_float32(source, at, step, target, to, pitch, columns, rows):
    """target[to + pitch * c + r] = source[at + step * r + c] for that many columns c and rows r."""
    if min(rows, columns) < 8:
        for r in range(rows):
            for c in range(columns):
                target[to + pitch * c + r] = source[at + step * r + c]
        return
    for below in range(0, rows, 8):
        r = min(below, rows - 8)  # the last square may lie over the one before it
        for beside in range(0, columns, 8):
            c = min(beside, columns - 8)
            turn_float32(source, at + step * r + c, step, target, to + pitch * c + r, pitch)


@register_jitable(fastmath=FAST)
def project_0(v0, u0, total, radius, axes):
    """Project the groups of level 0, l2 of v0."""
    n0 = axes[0]
    at = 0
    row = span(v0, at, n0)
    out = span(u0, at, n0)
    v = total[0]
    u = radius[0]
    if u >= v and u > 0:
        for j in range(row.size):
            out[j] = row[j]
    elif u <= 0:
        for j in range(row.size):
            out[j] = 0
    else:
        t = u / v
        for j in range(row.size):
            out[j] = row[j] * t


@register_jitable(fastmath=FINITE)
def newton_1(row, v, u, guess):
    """The threshold of one group with value v on radius u < v, and how many values are above."""
    safe = (v - u) / row.size
    goal = max(guess, safe)
    before = 0
    while True:
        t = np.float32(goal)
        excess = 0.0
        count = 0
        for start in range(0, row.size, 1024):
            part = row[start : start + 1024]
            part_excess = np.float32(0)
            part_count = np.float32(0)
            for j in range(part.size):
                above = abs(part[j]) - t
                part_excess += above if above > 0 else np.float32(0)
                part_count += np.float32(1) if above > 0 else np.float32(0)
            excess += np.float64(part_excess)
            count += int(part_count)
        if count == 0:
            if before > 0 or goal == safe:  # the radius is less than the values' rounding
                return max(goal, 0.0), 1
            goal = safe  # the guess was right of every value: from here Newton cannot fail
            continue
        goal = max(np.float64(t) + (excess - u) / count, safe)
        if count == before:
            return max(goal, 0.0), count
        if before > 0 and goal <= np.float64(t):  # rounding has put t right of the threshold
            return max(np.float64(t), 0.0), count
        before = count


@register_jitable(fastmath=FAST)
def thresholds_1(y, v0, u0, limit, hint, scratch, first, last, axes):
    """The thresholds of the groups of level 1, l1 of y; `hint` says where to start, and then what was found."""
    n0, s0, pitch = axes[0], axes[2], axes[6]
    tile = view(span(scratch, 8, scratch.size - 8), np.float32)
    length = (n0 // 16 + 1 | 1) * 16  # an odd number of lines: no two rows in the same sets of a cache
    for start in range(first, last, pitch):
        width = min(pitch, last - start)
        cross_float32(y, start, s0, tile, 0, length, width, n0)
        for j in range(width):
            g = start + j
            v = v0[g]
            u = u0[g]
            if u >= v:
                limit[g] = 0
            elif u <= 0:
                limit[g] = np.inf
            else:
                row = span(tile, length * j, n0)
                goal, count = newton_1(row, v, u, v * hint[0] - (u - v * hint[1]) * hint[2])
                hint[0], hint[1], hint[2] = goal / v, u / v, 1 / count
                limit[g] = up(goal)


@register_jitable(fastmath=FAST)
def project_1(y, x, limit, first, last, axes):
    """Project the groups of level 1, l1 of y."""
    n1, s0, t0 = axes[1], axes[2], axes[4]
    limits = span(limit, 0, n1)
    for i0 in range(first, last):
        at = i0 * s0
        to = i0 * t0
        row = span(y, at, n1)
        out = span(x, to, n1)
        for j in range(limits.size):
            t = limits[j]
            out[j] = row[j] - min(max(row[j], -t), t)


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
    swept for them again.
    """
    cells = fetch(geometry, 45)
    y_size = cells[0]
    x_size = cells[1]
    blocks_1 = cells[21]
    step_1 = cells[22]
    end_1 = cells[23]
    tile_blocks_1 = cells[24]
    tile_step_1 = cells[25]
    tile_end_1 = cells[26]
    radius_at = cells[27]
    radius_end = cells[28]
    total_at = cells[29]
    total_end = cells[30]
    v0_at = cells[31]
    v0_end = cells[32]
    u0_at = cells[33]
    u0_end = cells[34]
    slots_1_at = cells[35]
    slots_1_end = cells[36]
    limit_1_at = cells[37]
    limit_1_end = cells[38]
    hints_1_at = cells[39]
    hints_1_end = cells[40]
    scratch_at = cells[41]
    scratch_size = cells[42]
    seats = cells[43]
    memory_size = cells[44]
    axes_0 = cells[2 : 6]
    axes_1 = cells[13 : 20]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    resumes = read(desk, 1) != 0
    y = span(y_at, 0, y_size)
    x = span(x_at, 0, x_size)
    memory = span(work, 0, memory_size)
    radius = span(memory, radius_at, radius_end - radius_at)
    total = span(memory, total_at, total_end - total_at)
    v0 = span(memory, v0_at, v0_end - v0_at)
    u0 = span(memory, u0_at, u0_end - u0_at)
    slots_1 = span(memory, slots_1_at, slots_1_end - slots_1_at)
    limit_1 = view(span(memory, limit_1_at, limit_1_end - limit_1_at), np.float32)
    hints_1 = span(memory, hints_1_at, hints_1_end - hints_1_at)
    scratch = span(memory, scratch_at + seat * scratch_size, scratch_size)
    # sweep 1: aggregate level 1, l1 of y
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
            project_0(v0, u0, total, radius, axes_0)
            hints_1[:] = 0
            thresholds_1(y, v0, u0, limit_1, hints_1, scratch, 0 * tile_end_1, min(16, tile_end_1), axes_1)
        release(desk, 1, status)
    status = wait(desk, 1)
    if status != 0:
        return status
    # the thresholds of level 1, l1 of y
    done = 0
    while True:
        block = draw(desk, seat, seats, 2, tile_blocks_1)
        if block < 0:
            break
        first = block * tile_step_1
        last = min(first + tile_step_1, tile_end_1)
        for i in range(3):
            scratch[i] = hints_1[i]
        thresholds_1(y, v0, u0, limit_1, span(scratch, 0, 8), scratch, first, last, axes_1)
        done += 1
    if complete(desk, 2, done, tile_blocks_1):
        release(desk, 2, 0)
    wait(desk, 2)
    # sweep 2: project level 1, l1 of y
    while True:
        block = draw(desk, seat, seats, 3, blocks_1)
        if block < 0:
            break
        first = block * step_1
        last = min(first + step_1, end_1)
        project_1(y, x, limit_1, first, last, axes_1)
    return 0
