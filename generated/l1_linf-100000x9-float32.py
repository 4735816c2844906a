"""l1(linf): projects float32 arrays.

    level 0  l1    of v0: rows (reduced); threshold by sweep
    level 1  linf  of y: packed (groups, reduced)

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
LARGEST = 1.7976931348623157e308  # finite number
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
SHARES = 464


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


@intrinsic
def deal_9(typing_context, row, group, tile):
    """tile[224 * j + group + i] = row[9 * (group + i) + j] for 16 groups: vectors of values become
    vectors of groups by four rounds of shuffles, each of which interleaves halves.
    """

    def codegen(context, builder, signature, args):
        row, tile = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2)
        )
        word, lane, flag = ir.IntType(64), ir.IntType(32), ir.IntType(1)
        vector = ir.VectorType(context.get_value_type(types.float32), 16)
        lanes, flags = ir.VectorType(lane, 16), ir.VectorType(flag, 16)
        halves = [ir.Constant(lanes, [h + i // 2 + 16 * (i % 2) for i in range(16)]) for h in (0, 8)]
        kind = ir.FunctionType(vector, [vector.as_pointer(), lane, flags, vector])
        load = get_or_insert_function(builder.module, kind, "llvm.masked.load.v16f32.p0")

        def interleaved(parts):
            pairs = [(parts[i // 2], parts[i // 2 + 8], halves[i % 2]) for i in range(16)]
            return [builder.shuffle_vector(*pair) for pair in pairs]

        at = builder.gep(row, [builder.mul(args[1], word(9))])
        to = builder.gep(tile, [args[1]])
        for first in range(0, 9, 16):
            few = 16 if first + 16 <= 9 else 9 - first
            mask = ir.Constant(flags, [int(j < few) for j in range(16)])  # nothing past the row's end
            parts = []
            for i in range(16):
                start = builder.bitcast(builder.gep(at, [word(9 * i + first)]), vector.as_pointer())
                parts.append(builder.call(load, [start, lane(4), mask, ir.Constant(vector, None)]))
            parts = interleaved(interleaved(interleaved(interleaved(parts))))
            for j in range(few):
                start = builder.bitcast(builder.gep(to, [word(224 * (first + j))]), vector.as_pointer())
                builder.store(parts[j], start, align=4)
        return context.get_dummy_value()

    return types.void(row, types.int64, tile), codegen


@register_jitable
def deal(row, bundles, tile):
    """The values of that many groups to a tile, whose columns they then are."""
    whole = bundles - bundles % 16
    for g in range(0, whole, 16):
        deal_9(row, g, tile)
    for g in range(whole, bundles):
        for j in range(9):
            tile[224 * j + g] = row[9 * g + j]


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
def aggregate_1(y, v0, scratch, first, last, axes):
    """The values of the groups of level 1, linf of y."""
    tile = view(scratch, np.float32)
    cells = view(tile, np.int32)
    at = 0
    for start in range(first, last, 224):
        stop = min(start + 224, last)
        values = span(v0, start, stop - start)
        row = span(y, at + start * 9, (stop - start) * 9)
        deal(row, values.size, tile)
        for g in range(values.size):
            a = max(max(max(max(np.int32(cells[g] & MAGNITUDE_32), np.int32(cells[224 + g] & MAGNITUDE_32)), np.int32(cells[448 + g] & MAGNITUDE_32)), max(np.int32(cells[672 + g] & MAGNITUDE_32), np.int32(cells[896 + g] & MAGNITUDE_32))), max(max(np.int32(cells[1120 + g] & MAGNITUDE_32), np.int32(cells[1344 + g] & MAGNITUDE_32)), max(np.int32(cells[1568 + g] & MAGNITUDE_32), np.int32(cells[1792 + g] & MAGNITUDE_32))))
            values[g] = np.float64(view(np.int32(a), np.float32))


@register_jitable(fastmath=FAST)
def aggregate_0(v0, slot, first, last, axes):
    """Accumulate part of the groups of level 0, l1 of v0."""
    slot[0] = 0
    at = 0
    row = span(v0, at + first, last - first)
    a = 0.0
    for j in range(row.size):
        a = a + np.float64(abs(row[j]))
    g = 0
    slot[g] = slot[g] + a


@register_jitable(fastmath=FAST)
def combine_0(slots, blocks, total):
    """Join what the blocks accumulated of level 0, l1 of v0."""
    columns = total.size
    for b in range(1, blocks):
        slot = span(slots, b * columns, columns)
        for j in range(columns):
            slots[j] = slots[j] + slot[j]
    for g in range(columns):
        total[g] = slots[g]


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
def start_0(v0, total, radius, limit, count, warm, scratch, axes):
    """Where the search for the thresholds of level 0, l1 of v0 starts."""
    n0 = axes[0]
    for g in range(total.size):
        v = total[g]
        u = radius[g]
        count[g] = -1
        if u >= v:
            limit[g] = 0
            count[g] = -2
        elif u <= 0:
            limit[g] = np.inf
            count[g] = -2
        else:
            last = np.float64(limit[g]) if warm else 0.0  # of the last call
            limit[g] = max((v - u) / (n0), last if last < v else 0.0)
    # A first guess from 64 short pieces of each group: Newton's method mends what they miss.
    sample = span(view(scratch, np.float64), 0, 4096)
    if n0 >= 65536 and not warm:
        g = 0
        if count[g] == -1:
            at = 0
            value = 0.0
            for piece in range(64):
                row = span(v0, at + piece * (n0 // 64), 64)
                for j in range(64):
                    sample[piece * 64 + j] = row[j]
                    value += np.float64(abs(row[j]))
            part = radius[g] * (4096 / n0)
            if part < value:
                limit[g] = max(limit[g], newton_0(sample, value, part, 0.0)[0])


@register_jitable(fastmath=FINITE)
def excess_0(v0, limit, slot, above, first, last, axes):
    """Accumulate how far, and how often, the values of level 0, l1 of v0 exceed their limits."""
    slot[0] = 0
    above[0] = 0
    at = 0
    row = span(v0, at + first, last - first)
    g = 0
    t = limit[g]
    for start in range(0, row.size, 1024):
        part = row[start : start + 1024]
        part_excess = np.float64(0)
        part_count = np.float64(0)
        for j in range(part.size):
            a = abs(part[j]) - t
            part_excess += a if a > 0 else np.float64(0)
            part_count += np.float64(1) if a > 0 else np.float64(0)
        slot[g] += np.float64(part_excess)
        above[g] += np.float64(part_count)


@register_jitable(fastmath=FAST)
def newton_step_0(slots, counts, blocks, total, radius, limit, count, axes):
    """One Newton step for the thresholds of level 0, l1 of v0; returns how many are still open."""
    n0 = axes[0]
    groups = total.size
    open_groups = 0
    for g in range(groups):
        if count[g] == -2:
            continue
        excess = 0.0
        above = 0.0
        for b in range(blocks):
            excess += slots[b * groups + g]
            above += counts[b * groups + g]
        t = limit[g]
        u = radius[g]
        safe = (total[g] - u) / (n0)
        goal = max(np.float64(t) + (excess - u) / above if above > 0 else np.float64(t), safe)
        if above == 0 and count[g] < 0 and t != np.float64(safe):
            goal = safe  # the guess was right of every value: from here Newton cannot fail
            open_groups += 1
        elif above == 0 or above == count[g] or (count[g] >= 0 and goal <= t):
            if above > 0 and above != count[g]:  # rounding has put t right of the threshold
                goal = np.float64(t)
            goal = max(goal, 0.0)
            count[g] = -2
        else:
            count[g] = above
            open_groups += 1
        limit[g] = goal
    return open_groups


@register_jitable(fastmath=FAST)
def project_0(v0, u0, limit, first, last, axes):
    """Project the groups of level 0, l1 of v0."""
    at = 0
    row = span(v0, at + first, last - first)
    out = span(u0, at + first, last - first)
    t = limit[0]
    for j in range(row.size):
        out[j] = row[j] - min(max(row[j], -t), t)


@register_jitable(fastmath=FAST)
def project_1(y, x, v0, u0, scratch, first, last, axes):
    """Project the groups of level 1, linf of y."""
    memory = view(scratch, np.float32)
    limits = span(memory, 0, 224)
    spread = memory[224 :]
    at = 0
    to = 0
    for start in range(first, last, 224):
        stop = min(start + 224, last)
        v = span(v0, start, stop - start)
        u = span(u0, start, stop - start)
        row = span(y, at + start * 9, (stop - start) * 9)
        out = span(x, to + start * 9, row.size)
        for g in range(v.size):
            limits[g] = down(u[g]) if u[g] < v[g] else np.float32(np.inf)
        for g in range(0, stop - start, 16):
            spread_9(limits, g, spread)
        for j in range(row.size):
            t = spread[j]
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
    cells = fetch(geometry, 47)
    y_size = cells[0]
    x_size = cells[1]
    blocks_0 = cells[7]
    step_0 = cells[8]
    end_0 = cells[9]
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
    slots_0_at = cells[35]
    slots_0_end = cells[36]
    limit_0_at = cells[37]
    limit_0_end = cells[38]
    counts_0_at = cells[39]
    counts_0_end = cells[40]
    count_0_at = cells[41]
    count_0_end = cells[42]
    scratch_at = cells[43]
    scratch_size = cells[44]
    seats = cells[45]
    memory_size = cells[46]
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
    u0 = span(memory, u0_at, u0_end - u0_at)
    slots_0 = span(memory, slots_0_at, slots_0_end - slots_0_at)
    limit_0 = span(memory, limit_0_at, limit_0_end - limit_0_at)
    counts_0 = span(memory, counts_0_at, counts_0_end - counts_0_at)
    count_0 = span(memory, count_0_at, count_0_end - count_0_at)
    scratch = span(memory, scratch_at + seat * scratch_size, scratch_size)
    # sweep 1: aggregate level 1, linf of y
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
        if complete(desk, 1, done, blocks_1):
            release(desk, 1, 0)
        wait(desk, 1)
    # sweep 1: aggregate level 0, l1 of v0
    last_one = seat == 0
    if not resumes:
        done = 0
        while True:
            block = draw(desk, seat, seats, 2, blocks_0)
            if block < 0:
                break
            first = block * step_0
            last = min(first + step_0, end_0)
            aggregate_0(v0, span(slots_0, block * total.size, total.size), first, last, axes_0)
            done += 1
        last_one = complete(desk, 2, done, blocks_0)
        if last_one:  # the levels above, up to the root
            combine_0(slots_0, blocks_0, total)
    if last_one:
        status = check(total, radius)
        if status == 0:
            start_0(v0, total, radius, limit_0, count_0, warm, scratch, axes_0)
        release(desk, 2, status)
    status = wait(desk, 2)
    if status != 0:
        return status
    # the thresholds of level 0, l1 of v0
    for turn in range(24):
        done = 0
        while True:
            block = draw(desk, seat, seats, 3 + turn, blocks_0)
            if block < 0:
                break
            first = block * step_0
            last = min(first + step_0, end_0)
            excess_0(v0, limit_0, span(slots_0, block * total.size, total.size), span(counts_0, block * total.size, total.size), first, last, axes_0)
            done += 1
        if complete(desk, 3 + turn, done, blocks_0):
            searching = newton_step_0(slots_0, counts_0, blocks_0, total, radius, limit_0, count_0, axes_0)
            while searching > 0 and turn == 23:  # so long a search is rare: one thread ends it
                for block in range(blocks_0):
                    first = block * step_0
                    last = min(first + step_0, end_0)
                    excess_0(v0, limit_0, span(slots_0, block * total.size, total.size), span(counts_0, block * total.size, total.size), first, last, axes_0)
                searching = newton_step_0(slots_0, counts_0, blocks_0, total, radius, limit_0, count_0, axes_0)
            release(desk, 3 + turn, searching)
        if wait(desk, 3 + turn) == 0:
            break
    # sweep 2: project level 0, l1 of v0
    done = 0
    while True:
        block = draw(desk, seat, seats, 27, blocks_0)
        if block < 0:
            break
        first = block * step_0
        last = min(first + step_0, end_0)
        project_0(v0, u0, limit_0, first, last, axes_0)
        done += 1
    if complete(desk, 27, done, blocks_0):
        release(desk, 27, 0)
    wait(desk, 27)
    # sweep 2: project level 1, linf of y
    while True:
        block = draw(desk, seat, seats, 28, blocks_1)
        if block < 0:
            break
        first = block * step_1
        last = min(first + step_1, end_1)
        project_1(y, x, v0, u0, scratch, first, last, axes_1)
    return 0
