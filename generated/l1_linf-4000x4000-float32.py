"""l1(linf): projects float32 arrays.

    level 0  l1    of v0: rows (reduced); threshold by row
    level 1  linf  of y: rows (groups, reduced)

Values are aggregated from the leaf to the root, then each level is projected, from the root to
the leaf, on the radii that the level above leaves to its groups. The threads share a level's
blocks, which depend on the shape alone: so results do not depend on the threads.
Written by projgen, codegen 2.
"""

import numpy as np
from numba import cfunc, types
from numba.core.cgutils import for_range_slice, ir
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
LARGEST = 1.7976931348623157e308  # finite number
STRETCH = 128  # values that are worked on while those that lie ahead are asked for, and poured together
LINE = 64  # bytes of a cache line
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


@intrinsic
def ahead(typing_context, run, start):
    """Ask for values that a thread comes to soon after run[start : start + STRETCH]. Where the run
    ends before them, they are the next one's: a request for memory never fails.
    """

    def codegen(context, builder, signature, args):
        word, flag = ir.IntType(64), ir.IntType(32)
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        at = builder.bitcast(builder.gep(data, [args[1]]), pointer)
        for line in range(8192, 8704, 64):
            # to read, to keep, data
            builder.call(prefetch, [builder.gep(at, [word(line)]), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(run, types.int64), codegen


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


@intrinsic(prefer_literal=True)
def room(typing_context, dtype, values):
    """A tray: room for a number of values, which this thread makes, from the start of a line."""
    kind = dtype.dtype

    def codegen(context, builder, signature, args):
        size = context.get_constant(types.intp, values.literal_value)
        with builder.goto_entry_block():
            data = builder.alloca(context.get_value_type(kind), size)
        data.align = LINE
        return dense(context, builder, signature, data, size)

    return types.Array(kind, 1, "C")(dtype, values), codegen


@intrinsic
def before_line(typing_context, run):
    """How many values of a run come before a cache line begins."""

    def codegen(context, builder, signature, args):
        data = context.make_array(run)(context, builder, args[0]).data
        word = context.get_value_type(types.intp)
        short = builder.and_(builder.neg(builder.ptrtoint(data, word)), word(LINE - 1))
        return builder.udiv(short, word(run.dtype.bitwidth // 8))

    return types.intp(run), codegen


@intrinsic
def pour(typing_context, made, run, start):
    """run[start : start + made.size] = made, past the caches. A cache line begins there, unless
    they are too few to fill one.
    """

    def codegen(context, builder, signature, args):
        source = context.make_array(made)(context, builder, args[0])
        target = context.make_array(run)(context, builder, args[1])
        start = builder.gep(target.data, [args[2]])
        word, bits = context.get_value_type(types.intp), made.dtype.bitwidth
        values = 8 * LINE // bits
        whole = builder.and_(source.nitems, word(-values))
        past = builder.module.add_metadata([ir.IntType(32)(1)])

        def move(first, last, step, kind, align):
            with for_range_slice(builder, first, last, word(step)) as loop:
                places = (builder.gep(data, loop[:1]) for data in (source.data, start))
                a, b = (builder.bitcast(place, kind.as_pointer()) for place in places)
                store = builder.store(builder.load(a, align=align), b, align=align)
                store.set_metadata("nontemporal", past)

        number = ir.IntType(bits)
        move(word(0), whole, values, ir.VectorType(number, values), LINE)
        move(whole, source.nitems, 1, number, bits // 8)
        return context.get_dummy_value()

    return types.void(made, run, start), codegen


@intrinsic
def settle(typing_context):
    """What this thread has poured is seen by all that see what it stores from now on. (Elsewhere
    than on x86, what orders other stores orders these.)
    """

    def codegen(context, builder, signature, args):
        if builder.module.triple.startswith("x86_64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse.sfence", fnty=kind), [])
        return context.get_dummy_value()

    return types.void(), codegen


@register_jitable(fastmath=FAST)
def aggregate_1(y, v0, first, last, axes):
    """The values of the groups of level 1, linf of y."""
    n1, s0 = axes[1], axes[2]
    bits = view(y, np.int32)
    for i0 in range(first, last):
        at = i0 * s0
        row = span(bits, at, n1)
        a = np.int32(0)
        for start in range(0, row.size, STRETCH):
            ahead(row, start)
            part = row[start : start + STRETCH]
            for j in range(part.size):
                a = max(a, np.int32(part[j] & MAGNITUDE_32))
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


@register_jitable(fastmath=FAST)
def project_1(y, x, v0, u0, first, last, axes):
    """Project the groups of level 1, linf of y."""
    n1, s0, t0 = axes[1], axes[2], axes[4]
    tray = room(np.float32, STRETCH)
    for i0 in range(first, last):
        at = i0 * s0
        to = i0 * t0
        row = span(y, at, n1)
        out = span(x, to, n1)
        v = v0[i0]
        u = u0[i0]
        if u <= 0:
            for edge in range(before_line(out) - STRETCH, out.size, STRETCH):
                begin = max(edge, 0)
                size = min(edge + STRETCH, out.size) - begin
                made = span(tray, 0, size)
                for j in range(size):
                    made[j] = 0
                pour(made, out, begin)
        else:
            t = down(u) if u < v else np.float32(np.inf)
            for edge in range(before_line(out) - STRETCH, out.size, STRETCH):
                begin = max(edge, 0)
                size = min(edge + STRETCH, out.size) - begin
                part = span(row, begin, size)
                made = span(tray, 0, size)
                for j in range(size):
                    made[j] = min(max(part[j], -t), t)
                pour(made, out, begin)


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
    cells = fetch(geometry, 37)
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
    seats = cells[35]
    memory_size = cells[36]
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
            project_0(v0, u0, total, radius, axes_0)
        release(desk, 1, status)
    status = wait(desk, 1)
    if status != 0:
        return status
    # sweep 2: project level 1, linf of y
    while True:
        block = draw(desk, seat, seats, 2, blocks_1)
        if block < 0:
            break
        first = block * step_1
        last = min(first + step_1, end_1)
        project_1(y, x, v0, u0, first, last, axes_1)
    settle()
    return 0
