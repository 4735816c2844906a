"""l1(axis=1): projects float32 arrays.

    level 0  l1    of y: rows (groups, reduced); threshold by row

Values are aggregated from the leaf to the root, then each level is projected, from the root to
the leaf, on the radii that the level above leaves to its groups. The threads share a level's
blocks, which depend on the shape alone: so results do not depend on the threads.
Written by projgen, codegen 2.
"""

import numpy as np
from numba import cfunc, types
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
SHARES = 48


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
def aggregate_0(y, total, first, last, axes):
    """The values of the groups of level 0, l1 of y."""
    n1, s0 = axes[1], axes[2]
    for i0 in range(first, last):
        at = i0 * s0
        row = span(y, at, n1)
        a = 0.0
        for j in range(row.size):
            a = a + np.float64(abs(row[j]))
        total[i0] = a


@register_jitable(fastmath=FINITE)
def newton_0(row, v, u, guess):
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
def project_0(y, x, total, radius, first, last, axes):
    """Project the groups of level 0, l1 of y."""
    n1, s0, t0 = axes[1], axes[2], axes[4]
    # Of the last group: threshold and radius by value, and how many values were above.
    ratio, share, above = 0.0, 0.0, 1
    for i0 in range(first, last):
        at = i0 * s0
        to = i0 * t0
        row = span(y, at, n1)
        out = span(x, to, n1)
        v = total[i0]
        u = radius[i0]
        if u >= v:
            for j in range(row.size):
                out[j] = row[j]
        elif u <= 0:
            for j in range(row.size):
                out[j] = 0
        else:
            goal, count = newton_0(row, v, u, v * ratio - (u - v * share) / above)
            ratio, share, above = goal / v, u / v, count
            t = up(goal)
            for j in range(row.size):
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
    cells = fetch(geometry, 22)
    y_size = cells[0]
    x_size = cells[1]
    blocks_0 = cells[10]
    step_0 = cells[11]
    end_0 = cells[12]
    radius_at = cells[16]
    radius_end = cells[17]
    total_at = cells[18]
    total_end = cells[19]
    seats = cells[20]
    memory_size = cells[21]
    axes_0 = cells[2 : 9]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    resumes = read(desk, 1) != 0
    y = span(y_at, 0, y_size)
    x = span(x_at, 0, x_size)
    memory = span(work, 0, memory_size)
    radius = span(memory, radius_at, radius_end - radius_at)
    total = span(memory, total_at, total_end - total_at)
    # sweep 1: aggregate level 0, l1 of y
    last_one = seat == 0
    if not resumes:
        done = 0
        while True:
            block = draw(desk, seat, seats, 1, blocks_0)
            if block < 0:
                break
            first = block * step_0
            last = min(first + step_0, end_0)
            aggregate_0(y, total, first, last, axes_0)
            done += 1
        last_one = complete(desk, 1, done, blocks_0)
    if last_one:
        status = check(total, radius)
        release(desk, 1, status)
    status = wait(desk, 1)
    if status != 0:
        return status
    # sweep 2: project level 0, l1 of y
    while True:
        block = draw(desk, seat, seats, 2, blocks_0)
        if block < 0:
            break
        first = block * step_0
        last = min(first + step_0, end_0)
        project_0(y, x, total, radius, first, last, axes_0)
    return 0
