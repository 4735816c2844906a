"""l1(l1(axis=1)): projects float32 arrays.

    level 0  l1    of v0: rows (reduced); threshold by row
    level 1  l1    of y: packed (groups, reduced); threshold by sort

Values are aggregated from the leaf to the root, then each level is projected, from the root to
the leaf, on the radii that the level above leaves to its groups. The threads share a level's
blocks, which depend on the shape alone: so results do not depend on the threads.
Written by projgen, codegen 2.
"""

import numpy as np
from numba import cfunc, types
from numba.core.cgutils import get_or_insert_function, ir
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


@intrinsic
def spread_6_2(typing_context, limits, group, tile):
    """tile[3 * group + i] = limits[group + 2 * (i // 6) + i % 2] for 16 bundles of 2 groups, whose
    values alternate: one shuffle for each vector.
    """

    def codegen(context, builder, signature, args):
        limits, tile = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2)
        )
        word, lane = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(context.get_value_type(types.float32), 16)
        first = builder.gep(limits, [args[1]])

        def load(start):
            part = builder.bitcast(builder.gep(first, [word(start)]), vector.as_pointer())
            return builder.load(part, align=4)

        at = builder.gep(tile, [builder.mul(args[1], word(3))])
        for i in range(0, 96, 16):
            groups = [j // 6 * 2 + j % 2 for j in range(i, i + 16)]
            low = sorted(groups)[0]
            high = next((group for group in sorted(groups) if group >= low + 16), low)
            lanes = [group - low if group < low + 16 else group - high + 16 for group in groups]
            parts = load(low), load(high)
            shuffled = builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(lane, 16), lanes))
            part = builder.bitcast(builder.gep(at, [word(i)]), vector.as_pointer())
            builder.store(shuffled, part, align=4)
        return context.get_dummy_value()

    return types.void(limits, types.int64, tile), codegen


@register_jitable(fastmath=FAST)
def aggregate_1(y, v0, scratch, first, last, axes):
    """The values of the groups of level 1, l1 of y."""
    at = 0
    for start in range(first, last, 672):
        stop = min(start + 672, last)
        values = span(v0, start, stop - start)
        row = span(y, at + start * 3, (stop - start) * 3)
        for g in range(values.size // 2):
            j = 6 * g
            a = np.float64(abs(row[j])) + np.float64(abs(row[j + 2])) + np.float64(abs(row[j + 4]))
            values[2 * g] = a
            a = np.float64(abs(row[j + 1])) + np.float64(abs(row[j + 3])) + np.float64(abs(row[j + 5]))
            values[2 * g + 1] = a


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


@register_jitable(fastmath=FINITE)
def newton_0(row, v, u, guess):
    """The threshold of one group with value v on radius u < v, and how many values are above."""
    safe = (v - u) / row.size
    goal = max(guess, safe)
    before = 0
    while True:
        t = np.float64(goal)
        excess = 0.0
        count = 0
        for start in range(0, row.size, 1024):
            part = row[start : start + 1024]
            part_excess = np.float64(0)
            part_count = np.float64(0)
            for j in range(part.size):
                above = abs(part[j]) - t
                part_excess += above if above > 0 else np.float64(0)
                part_count += np.float64(1) if above > 0 else np.float64(0)
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
def project_0(v0, u0, total, radius, axes):
    """Project the groups of level 0, l1 of v0."""
    n0 = axes[0]
    # Of the last group: threshold and radius by value, and how many values were above.
    ratio, share, above = 0.0, 0.0, 1
    at = 0
    row = span(v0, at, n0)
    out = span(u0, at, n0)
    v = total[0]
    u = radius[0]
    if u >= v:
        for j in range(row.size):
            out[j] = row[j]
    elif u <= 0:
        for j in range(row.size):
            out[j] = 0
    else:
        goal, count = newton_0(row, v, u, v * ratio - (u - v * share) / above)
        ratio, share, above = goal / v, u / v, count
        t = goal
        for j in range(row.size):
            out[j] = row[j] - min(max(row[j], -t), t)


EXCHANGES = (  # the larger one first, pair after pair: then 3 values descend
    (0, 2), (0, 1), (1, 2),
)


@intrinsic
def sort_3_2(typing_context, tile, at):
    """The thresholds of 16 groups side by side in a tile's columns, whose values are 672 apart: from
    tile[at] on. After the values there are the radii, which become the thresholds.
    """

    def codegen(context, builder, signature, args):
        tile = context.make_array(signature.args[0])(context, builder, args[0]).data
        vector = ir.VectorType(context.get_value_type(types.float32), 16)
        kind = ir.FunctionType(vector, [vector])
        magnitude = get_or_insert_function(builder.module, kind, "llvm.fabs.v16f32")
        zero = ir.Constant(vector, None)

        def place(row):
            start = builder.gep(tile, [builder.add(args[1], ir.IntType(64)(672 * row))])
            return builder.bitcast(start, vector.as_pointer())

        def load(row):
            return builder.load(place(row), align=4)

        def times(x, factor):
            return builder.fmul(x, ir.Constant(vector, [factor] * 16))

        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def smaller(a, b):
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        def largest_mean(origin):  # of what the first values exceed it by, in all, less the radius
            excess = builder.fsub(zero, radius)
            for i, x in enumerate(values):
                excess = builder.fadd(excess, builder.fsub(x, origin))
                mean = times(excess, 1 / (i + 1))
                largest = larger(largest, mean) if i else mean
            return largest

        values = [builder.call(magnitude, [load(i)]) for i in range(3)]
        radius = load(3)
        for i, j in EXCHANGES:
            a, b = values[i], values[j]
            values[i], values[j] = larger(a, b), smaller(a, b)
        t = larger(largest_mean(zero), zero)
        # Large sums are rounded by too much: again, from the values relative to t, which is near;
        # and larger by more than its own rounding.
        t = builder.fadd(t, largest_mean(t))
        t = times(larger(t, zero), 1 + 2**-23)
        builder.store(t, place(3), align=4)
        return context.get_dummy_value()

    return types.void(tile, types.int64), codegen


@register_jitable(fastmath=FAST)
def thresholds_1(row, v, u, tile, limits):
    """The thresholds of groups of level 1, l1 of y, one after the other in `row`."""
    bundles = v.size // 2
    radii = span(tile, 2016, 672)  # and then the thresholds
    for g in range(bundles):
        tile[g] = row[6 * g]
        tile[336 + g] = row[6 * g + 1]
        tile[672 + g] = row[6 * g + 2]
        tile[1008 + g] = row[6 * g + 3]
        tile[1344 + g] = row[6 * g + 4]
        tile[1680 + g] = row[6 * g + 5]
    for g in range(bundles):
        radii[g] = u[2 * g]
        radii[336 + g] = u[2 * g + 1]
    for i in range(2):
        for g in range(0, bundles, 16):
            sort_3_2(tile, 336 * i + g)
    for g in range(bundles):
        limits[2 * g] = radii[g]
        limits[2 * g + 1] = radii[336 + g]
    for g in range(v.size):
        limits[g] = 0 if u[g] >= v[g] else limits[g] if u[g] > 0 else np.inf


@register_jitable(fastmath=FAST)
def project_1(y, x, v0, u0, scratch, first, last, axes):
    """Project the groups of level 1, l1 of y."""
    memory = view(scratch, np.float32)
    limits = span(memory, 0, 672)
    spread = memory[672 :]
    at = 0
    to = 0
    for start in range(first, last, 672):
        stop = min(start + 672, last)
        v = span(v0, start, stop - start)
        u = span(u0, start, stop - start)
        row = span(y, at + start * 3, (stop - start) * 3)
        out = span(x, to + start * 3, row.size)
        thresholds_1(row, v, u, spread, limits)
        for g in range(0, stop - start, 32):
            spread_6_2(limits, g, spread)
        for j in range(row.size):
            t = spread[j]
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
    cells = fetch(geometry, 39)
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
    u0_at = cells[33]
    u0_end = cells[34]
    scratch_at = cells[35]
    scratch_size = cells[36]
    seats = cells[37]
    memory_size = cells[38]
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
            aggregate_1(y, v0, scratch, first, last, axes_1)
            done += 1
        last_one = complete(desk, 1, done, blocks_1)
        if last_one:  # the levels above, up to the root
            aggregate_0(v0, total, axes_0)
    if last_one:
        status = check(total, radius)
        if status == 0:
            project_0(v0, u0, total, radius, axes_0)
        release(desk, 1, status)
    status = wait(desk, 1)
    if status != 0:
        return status
    # sweep 2: project level 1, l1 of y
    while True:
        block = draw(desk, seat, seats, 2, blocks_1)
        if block < 0:
            break
        first = block * step_1
        last = min(first + step_1, end_1)
        project_1(y, x, v0, u0, scratch, first, last, axes_1)
    return 0
