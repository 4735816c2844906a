"""l2(l1(axis=0)): projects float32 arrays in place.

    level 0  l2    of v0: rows (reduced)
    level 1  l1    of y: columns (reduced, groups); threshold by strip

Values are aggregated from the leaf to the root, then each level is projected, from the root to
the leaf, on the radii that the level above leaves to its groups. The threads share a level's
blocks, which depend on the shape alone: so results do not depend on the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from numba import cfunc, types
from numba.core.cgutils import alloca_once_value, for_range, ir
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


@intrinsic(prefer_literal=True)
def survey_32(typing_context, values, at, step, rows, limits, found, tile, fresh):
    """Of 16 groups side by side, with `rows` values from `at` on, `step` apart: how far they exceed
    the groups' limits in all, and how many do. They are copied to the tile if `fresh`.
    """

    def codegen(context, builder, signature, args):
        values, limits, found, tile = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 4, 5, 6)
        )
        at, step, rows = args[1:4]
        word = ir.IntType(64)
        vector = ir.VectorType(context.get_value_type(types.float32), 16)
        wide = ir.VectorType(ir.DoubleType(), 16)
        integers = ir.VectorType(ir.IntType(32), 16)
        zero, none = ir.Constant(vector, [0.0] * 16), ir.Constant(integers, [0] * 16)
        magnitude = ir.Constant(integers, [0x7FFFFFFF] * 16)

        def place(array, index, kind=vector):
            return builder.bitcast(builder.gep(array, [index]), kind.as_pointer())

        limit = builder.load(place(limits, word(0)), align=4)
        cursor = alloca_once_value(builder, at)
        copied = alloca_once_value(builder, word(0))
        total = alloca_once_value(builder, ir.Constant(wide, [0.0] * 16))
        # Two rows at a time, each with sums of its own: excess and count.
        sums = [[alloca_once_value(builder, x) for x in (zero, none)] for i in range(2)]

        def add_row(excess, count):
            here = builder.load(cursor)
            builder.store(builder.add(here, step), cursor)
            x = builder.load(place(values, here), align=4)
            if fresh.literal_value:
                to = builder.load(copied)
                builder.store(builder.add(to, word(16)), copied)
                builder.store(x, place(tile, to), align=4)
            x = builder.bitcast(builder.and_(builder.bitcast(x, integers), magnitude), vector)
            exceeds = builder.fcmp_ordered(">", x, limit)
            part = builder.select(exceeds, builder.fsub(x, limit), zero)
            builder.store(builder.fadd(builder.load(excess), part), excess)
            builder.store(builder.sub(builder.load(count), builder.sext(exceeds, integers)), count)

        def add_rows(size):
            with for_range(builder, builder.udiv(size, word(2))):
                for row in sums:
                    add_row(*row)

        def flush():
            parts = [builder.load(row[0]) for row in sums]
            part = builder.fpext(builder.fadd(*parts), wide)
            builder.store(builder.fadd(builder.load(total), part), total)
            for row in sums:
                builder.store(zero, row[0])

        with for_range(builder, builder.udiv(rows, word(64))):  # so that sums in float32 stay short
            add_rows(word(64))
            flush()
        rest = builder.urem(rows, word(64))
        add_rows(rest)
        with for_range(builder, builder.urem(rest, word(2))):
            add_row(*sums[0])
        flush()
        excess = builder.load(total)
        count = builder.add(*(builder.load(row[1]) for row in sums))
        for i, x in enumerate((excess, builder.sitofp(count, wide))):
            builder.store(x, place(found, word(16 * i), wide), align=8)
        return context.get_dummy_value()

    index = types.int64
    given = values, index, index, index, limits, found, tile, fresh
    return types.void(*given), codegen


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
def newton_1(source, at, step, rows, v, u, limit, trial, found, search, hint, tile, fresh):
    """The thresholds of up to 16 groups side by side, which the first pass copies to the tile if `fresh`."""
    excess, count = span(found, 0, 16), span(found, 16, 16)
    before, goal, safe, radius = span(search, 0, 16), span(search, 16, 16), span(search, 32, 16), span(search, 48, 16)
    trial[:] = np.inf
    before[:] = -1
    goal[:] = 0
    searching = 0
    for g in range(v.size):
        if u[g] <= 0:
            goal[g] = np.inf
        elif u[g] < v[g]:
            guess = v[g] * hint[0] - (u[g] - v[g] * hint[1]) * hint[2]
            radius[g] = u[g]
            safe[g] = (v[g] - u[g]) / rows
            trial[g] = max(guess, safe[g])
            before[g] = 0
            searching += 1
    while searching > 0:
        if fresh:
            survey_32(source, at, step, rows, trial, found, tile, 1)
            source, at, step, fresh = tile, 0, 16, False
        else:
            survey_32(source, at, step, rows, trial, found, tile, 0)
        searching = 0
        for g in range(16):  # without branches
            t = np.float64(trial[g])
            aim = max(t + (excess[g] - radius[g]) / max(count[g], 1.0), safe[g])
            past = (before[g] > 0) & (aim <= t)  # rounding has put t right of the threshold
            settled = (count[g] == before[g]) | past
            aim = t if past & (count[g] != before[g]) else aim
            # No value above: the guess was right of them all, and from the safe one Newton cannot
            # fail; unless the radius is less than the values' rounding.
            none = count[g] == 0
            again = none & (before[g] == 0) & (trial[g] != np.float32(safe[g]))
            settled = not again if none else settled
            aim = (safe[g] if again else max(t, safe[g])) if none else aim
            searches = before[g] >= 0
            goal[g] = aim if searches else goal[g]
            trial[g] = aim if searches else trial[g]
            searching += 1 if searches & (not settled) else 0
            before[g] = (-1.0 if settled else count[g]) if searches else before[g]
    values = thresholds = radii = counts = 0.0
    for g in range(v.size):
        t = max(goal[g], 0.0)
        limit[g] = up(t)
        if 0 < u[g] < v[g]:
            values += v[g]
            thresholds += t
            radii += u[g]
            counts += count[g] / v.size
    if values > 0:
        hint[0] = thresholds / values
        hint[1] = radii / values
        hint[2] = 1 / max(counts, 1.0)


@register_jitable(fastmath=FAST)
def thresholds_1(y, v0, u0, limit, hint, scratch, first, last, axes):
    """The thresholds of the groups of level 1, l1 of y; `hint` says where to start, and then what was found."""
    n0, s0 = axes[0], axes[2]
    found = span(scratch, 8, 32)
    search = span(scratch, 40, 64)
    memory = view(span(scratch, 104, scratch.size - 104), np.float32)
    trial = span(memory, 0, 16)
    tile = span(memory, 16, memory.size - 16)
    for start in range(first, last, 16):
        width = min(16, last - start)
        source, at, step, fresh = y, start, s0, width == 16
        if not fresh:  # they are fewer than a vector has
            for i0 in range(n0):
                row = span(y, at + i0 * step, width)
                cells = span(tile, 16 * i0, width)
                for j in range(width):
                    cells[j] = row[j]
            source, at, step = tile, 0, 16
        g = start
        newton_1(source, at, step, n0, span(v0, g, width), span(u0, g, width), span(limit, g, width), trial, found, search, hint, tile, fresh)


@register_jitable(fastmath=FAST)
def project_1(y, limit, first, last, axes):
    """Project the groups of level 1, l1 of y."""
    n1, s0 = axes[1], axes[2]
    limits = span(limit, 0, n1)
    for i0 in range(first, last):
        at = i0 * s0
        row = span(y, at, n1)
        for j in range(limits.size):
            t = limits[j]
            row[j] = row[j] - min(max(row[j], -t), t)


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
        project_1(y, limit_1, first, last, axes_1)
    return 0
