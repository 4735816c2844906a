"""l1(w): groups of float32 arrays.

    groups lie side by side in memory: 256 are measured together, where they lie, 128 copied, and 16 of these searched together

A group's elements are read for its value, and in a second call to project it.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.core.cgutils import alloca_once_value, for_range
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
LANES = 256  # groups side by side that are worked on together
STRIP = 128  # of these, how many are copied together
MINUS_ZERO = np.uint64(1 << 63)  # its bits: those of weights below it are higher
FEW = 1e-6  # of a group's value: a radius below that takes care
NEAR = 2e-7  # a step up, by t, after which the error is beyond float32
MOST_TURNS = 200  # of a search, which ends sooner unless its weights are too far apart for float64
MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)  # all of a float's bits but its sign


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


# The desk, where the threads of a call meet. Cell 0 counts them, cell 1 may hold where weights are,
# cell 2 the step from a group's radius to the next one's: 0 where all have the same. Each thread's
# share of the blocks has a counter.
SHARES = 32


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


@intrinsic
def pointer(typing_context, address):
    """To the float64 values at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), codegen


@register_jitable
def bits_of(value):
    """The bits of a float but its sign; those of infinity and NaN are the highest."""
    return view(np.float64(value), np.int64) & np.int64(0x7FFFFFFFFFFFFFFF)


@register_jitable
def unit_of(weight):
    """The power of two by which a weight, or 0, comes to lie between 1/2 and 1, so that squares of
    weights stay in range."""
    return min(1000, max(-1000, -math.frexp(weight)[1]))


@register_jitable(fastmath=FINITE)
def heaviest(row, w, t):
    """The largest weight of a group's values that are above it times t."""
    top = 0.0
    for j in range(row.size):
        a = abs(np.float64(row[j]))
        top = np.float64(w[j]) if a - np.float64(w[j]) * t > 0 and np.float64(w[j]) > top else top
    return top


@register_jitable(fastmath=FINITE, error_model="numpy")
def solve(row, w, v, u, guess):
    """Project a group with value v on radius u < v; the threshold t, by v, and how t falls with u.

    Newton's method for sum w max(a - w t, 0) = u, from a guess of t / v. That sum is convex in t:
    a step from the right of the solution lands on its left, steps from the left climb to it.
    """
    if u <= 0:
        for j in range(row.size):
            row[j] = math.copysign(abs(np.float64(row[j])) if w[j] == 0 else 0.0, row[j])
        return 0.0, 1.0
    bits = np.int64(0)
    for j in range(w.size):
        bits = np.int64(max(bits, np.int64(view(np.float64(w[j]), np.int64) & MAGNITUDE)))
    unit = unit_of(np.float64(view(np.int64(bits), np.float64)))
    scale = math.ldexp(1.0, unit)
    goal, safe = u * scale, 0.0
    t = max(guess * v / scale, safe) if 1e-100 < scale < 1e100 else safe
    before = 0.0
    nudge = 4e-16
    for turn in range(MOST_TURNS):
        excess, squares = 0.0, 0.0
        for j in range(row.size):
            b = np.float64(w[j]) * scale
            above = abs(np.float64(row[j])) - b * t
            excess += b * above if above > 0 else 0.0
            squares += b * b if above > 0 else 0.0
        if squares == 0 and before == 0 and t > safe:
            t = safe  # the guess was right of every value
            continue
        if squares < 1e-250:
            left = heaviest(row, w, scale * t)
            finer = unit_of(left) - unit
            if left > 0 and finer > 0:  # what is left has weights far below the others: in units of its own
                unit += finer
                scale, t = math.ldexp(1.0, unit), math.ldexp(t, -finer)
                goal = u * scale
                before = np.inf if before > 0 else 0.0
                continue
        if squares == before and excess > 2.0 * goal:  # what is above t is a rounding, and too much
            t, nudge = max(t * (1.0 + nudge), 1e-300), 2.0 * nudge
            continue
        if not squares > 0 or squares == before or (before > 0 and not excess > goal):
            break
        last, t = t, max(t + (excess - goal) / squares, safe)
        # A long step from the right is rounded by too much: what follows is as if it were the first.
        before = squares if 2.0 * t > last else 0.0
    factor = 1.0
    if u < FEW * v:  # what is left of some values is little more than their rounding: it is put right
        sure, vague = 0.0, 0.0
        for j in range(row.size):
            a = abs(np.float64(row[j]))
            left = max(a - np.float64(w[j]) * scale * t, 0.0)
            part = np.float64(w[j]) * scale * left if left > 0 else 0.0
            sure += 0.0 if left < FEW * a else part
            vague += part if left < FEW * a else 0.0
        factor = max(goal - sure, 0.0) / vague if vague > 1e-9 * goal else 1.0
    for j in range(row.size):
        a = abs(np.float64(row[j]))
        left = max(a - np.float64(w[j]) * scale * t, 0.0)
        row[j] = math.copysign(min(a, left * factor if left < FEW * a else left), row[j])
    if not 1e-100 < scale < 1e100 or not squares > 0:
        return 0.0, 1.0
    return t / v * scale, scale * scale / squares


@register_jitable(fastmath=FAST)
def measure(y, w, begin, end, base_y, base_w, width, index, axes, sums):
    """The sums of the groups of a tile. Returns whether a weight is below 0."""
    sums[:] = 0.0
    most = np.uint64(0)
    y_offsets = span(index, axes[31], end)
    y_step = axes[21]
    w_offsets = span(index, axes[35], end)
    w_step = axes[23]
    run = axes[20]
    whole = run - run % 8
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_w = base_w + w_offsets[o]
        for i in range(0, whole, 8):
            row_0 = span(y, at_y, width)
            row_1 = span(y, at_y + y_step, width)
            row_2 = span(y, at_y + 2 * y_step, width)
            row_3 = span(y, at_y + 3 * y_step, width)
            row_4 = span(y, at_y + 4 * y_step, width)
            row_5 = span(y, at_y + 5 * y_step, width)
            row_6 = span(y, at_y + 6 * y_step, width)
            row_7 = span(y, at_y + 7 * y_step, width)
            own_0 = span(w, at_w, width)
            own_1 = span(w, at_w + w_step, width)
            own_2 = span(w, at_w + 2 * w_step, width)
            own_3 = span(w, at_w + 3 * w_step, width)
            own_4 = span(w, at_w + 4 * w_step, width)
            own_5 = span(w, at_w + 5 * w_step, width)
            own_6 = span(w, at_w + 6 * w_step, width)
            own_7 = span(w, at_w + 7 * w_step, width)
            for c in range(width):
                sum = sums[c]
                a = abs(np.float64(row_0[c]))
                w_c = np.float64(own_0[c])
                most = max(most, view(np.float64(own_0[c]), np.uint64))
                sum += w_c * a
                a = abs(np.float64(row_1[c]))
                w_c = np.float64(own_1[c])
                most = max(most, view(np.float64(own_1[c]), np.uint64))
                sum += w_c * a
                a = abs(np.float64(row_2[c]))
                w_c = np.float64(own_2[c])
                most = max(most, view(np.float64(own_2[c]), np.uint64))
                sum += w_c * a
                a = abs(np.float64(row_3[c]))
                w_c = np.float64(own_3[c])
                most = max(most, view(np.float64(own_3[c]), np.uint64))
                sum += w_c * a
                a = abs(np.float64(row_4[c]))
                w_c = np.float64(own_4[c])
                most = max(most, view(np.float64(own_4[c]), np.uint64))
                sum += w_c * a
                a = abs(np.float64(row_5[c]))
                w_c = np.float64(own_5[c])
                most = max(most, view(np.float64(own_5[c]), np.uint64))
                sum += w_c * a
                a = abs(np.float64(row_6[c]))
                w_c = np.float64(own_6[c])
                most = max(most, view(np.float64(own_6[c]), np.uint64))
                sum += w_c * a
                a = abs(np.float64(row_7[c]))
                w_c = np.float64(own_7[c])
                most = max(most, view(np.float64(own_7[c]), np.uint64))
                sum += w_c * a
                sums[c] = sum
            at_y += 8 * y_step
            at_w += 8 * w_step
        for i in range(whole, run):
            row_0 = span(y, at_y, width)
            own_0 = span(w, at_w, width)
            for c in range(width):
                sum = sums[c]
                a = abs(np.float64(row_0[c]))
                w_c = np.float64(own_0[c])
                most = max(most, view(np.float64(own_0[c]), np.uint64))
                sum += w_c * a
                sums[c] = sum
            at_y += y_step
            at_w += w_step
    return most > MINUS_ZERO


@intrinsic
def copy_16(typing_context, source, at, target, to):
    """Copy 16 values."""

    def codegen(context, builder, signature, args):
        source, target = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2)
        )
        values = ir.VectorType(context.get_value_type(signature.args[0].dtype), 16).as_pointer()
        size = signature.args[0].dtype.bitwidth // 8
        here = builder.load(builder.bitcast(builder.gep(source, [args[1]]), values), align=size)
        builder.store(here, builder.bitcast(builder.gep(target, [args[3]]), values), align=size)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@intrinsic
def project_16(typing_context, rows, at, weights, own_at, level, level_at, target, to):
    """Write the projection of a row y of 16 groups, with weights w of that row: y - min(max(y, -w t), w t)."""

    def codegen(context, builder, signature, args):
        y, w, level, target = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2, 4, 6)
        )
        vector, wide = ir.VectorType(ir.DoubleType(), 16), ir.VectorType(ir.DoubleType(), 16)

        def each(x):
            return ir.Constant(vector, [x] * 16)

        def place(array, index, kind):
            return builder.bitcast(builder.gep(array, [index]), kind.as_pointer())

        def load_y(index):
            stored = ir.VectorType(context.get_value_type(types.float32), 16)
            x = builder.load(place(y, index, stored), align=4)
            x = builder.fpext(x, vector)
            return x

        def load_w(index):
            stored = ir.VectorType(context.get_value_type(types.float64), 16)
            x = builder.load(place(w, index, stored), align=8)
            return x

        def times(a, b):
            return builder.fmul(a, b, flags=("contract",))

        def where(x, then):  # x is above 0, and else 0
            return builder.select(builder.fcmp_ordered(">", x, zero), then, zero)

        def less(a, b):
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        def more(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        zero = each(0.0)

        t = builder.load(place(level, args[5], wide), align=8)
        x, b = load_y(args[1]), load_w(args[3])
        least = where(b, times(b, t))
        x = builder.fsub(x, less(more(x, builder.fneg(least)), least))
        x = builder.fptrunc(x, ir.VectorType(ir.FloatType(), 16))
        builder.store(x, place(target, args[7], x.type), align=4)
        return context.get_dummy_value()

    index = types.int64
    return types.void(rows, index, weights, index, level, index, target, index), codegen


@register_jitable
def take(y, w, begin, end, base_y, base_w, width, pitch, index, axes, rows, weights):
    """Copy a strip of groups, 16 side by side; how many elements each has."""
    j, whole = 0, width - width % 16
    y_offsets = span(index, axes[31], end)
    y_step = axes[21]
    w_offsets = span(index, axes[35], end)
    w_step = axes[23]
    run = axes[20]
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_w = base_w + w_offsets[o]
        for i in range(run):
            for c in range(0, whole, 16):
                copy_16(y, at_y + c, rows, c * pitch + j)
                copy_16(w, at_w + c, weights, c * pitch + j)
            for c in range(whole, width):
                rows[whole * pitch + j + c - whole] = y[at_y + c]
                weights[whole * pitch + j + c - whole] = w[at_w + c]
            j += 16
            at_y += y_step
            at_w += w_step
    return j // 16


@register_jitable
def lone(rows, weights, c, n, pitch, line, own):
    """Copy one group of a strip."""
    at = (c - c % 16) * pitch + c % 16
    for j in range(n):
        line[j] = rows[at + 16 * j]
        own[j] = weights[at + 16 * j]


@register_jitable
def put(x, begin, end, base_x, width, pitch, index, axes, rows, weights, level, line):
    """Write the projection of a strip, whose levels are found."""
    j, whole = 0, width - width % 16
    x_offsets = span(index, axes[33], end)
    x_step = axes[22]
    run = axes[20]
    for o in range(begin, end):
        at_x = base_x + x_offsets[o]
        for i in range(run):
            for c in range(0, whole, 16):
                project_16(rows, c * pitch + j, weights, c * pitch + j, level, c, x, at_x + c)
            if whole < width:
                project_16(rows, whole * pitch + j, weights, whole * pitch + j, level, whole, line, 0)
                for c in range(whole, width):
                    x[at_x + c] = line[c - whole]
            j += 16
            at_x += x_step


@intrinsic
def exceed_32(typing_context, rows, weights, n, level, sums):
    """Add to `sums`, over n rows y of 16 groups and weights w of each,
    with b = |y| - w t, the sum of w b where b is above 0; and that of w^2.
    """

    def codegen(context, builder, signature, args):
        y, w, level, sums = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 1, 3, 4)
        )
        word = ir.IntType(64)
        vector, wide = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.DoubleType(), 16)

        def each(x):
            return ir.Constant(vector, [x] * 16)

        def place(array, index, kind):
            return builder.bitcast(builder.gep(array, [index]), kind.as_pointer())

        def load_y(index):
            stored = ir.VectorType(context.get_value_type(types.float32), 16)
            x = builder.load(place(y, index, stored), align=4)
            return x

        def load_w(index):
            stored = ir.VectorType(context.get_value_type(types.float64), 16)
            x = builder.load(place(w, index, stored), align=8)
            x = builder.fptrunc(x, vector)
            return x

        def times(a, b):
            return builder.fmul(a, b, flags=("contract",))

        def add(a, b):
            return builder.fadd(a, b, flags=("contract",))

        def where(x, then):  # x is above 0, and else 0
            return builder.select(builder.fcmp_ordered(">", x, zero), then, zero)

        def magnitude(x):
            integers = ir.VectorType(ir.IntType(32), 16)
            but_sign = ir.Constant(integers, [0x7FFFFFFF] * 16)
            return builder.bitcast(builder.and_(builder.bitcast(x, integers), but_sign), vector)

        zero = each(0.0)

        t = builder.load(place(level, word(0), wide), align=8)
        t = builder.fptrunc(t, vector)
        at = alloca_once_value(builder, word(0))  # a row
        parts = [alloca_once_value(builder, zero) for i in range(2)]

        def add_row():
            row = builder.load(at)
            builder.store(builder.add(row, word(1)), at)
            start = builder.mul(row, word(16))
            x, b = load_y(start), load_w(start)
            x = magnitude(x)
            above = builder.fsub(x, times(b, t), flags=("contract",))
            own = where(above, b)
            terms = times(own, where(above, above)), times(own, own)
            for part, term in zip(parts, terms):
                builder.store(add(builder.load(part), term), part)

        def flush():
            for i, part in enumerate(parts):
                total = place(sums, word(16 * i), wide)
                new = builder.fpext(builder.load(part), wide)
                builder.store(builder.fadd(builder.load(total, align=8), new), total, align=8)
                builder.store(zero, part)

        with for_range(builder, builder.udiv(args[2], word(64))):  # so that sums in float32 stay short
            with for_range(builder, word(64)):
                add_row()
            flush()
        with for_range(builder, builder.urem(args[2], word(64))):
            add_row()
        flush()
        return context.get_dummy_value()

    return types.void(rows, weights, types.int64, level, sums), codegen


@intrinsic
def exceed_64(typing_context, rows, weights, n, level, sums):
    """Add to `sums`, over n rows y of 16 groups and weights w of each,
    with b = |y| - w t, the sum of w b where b is above 0; and that of w^2.
    """

    def codegen(context, builder, signature, args):
        y, w, level, sums = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 1, 3, 4)
        )
        word = ir.IntType(64)
        vector, wide = ir.VectorType(ir.DoubleType(), 16), ir.VectorType(ir.DoubleType(), 16)

        def each(x):
            return ir.Constant(vector, [x] * 16)

        def place(array, index, kind):
            return builder.bitcast(builder.gep(array, [index]), kind.as_pointer())

        def load_y(index):
            stored = ir.VectorType(context.get_value_type(types.float32), 16)
            x = builder.load(place(y, index, stored), align=4)
            x = builder.fpext(x, vector)
            return x

        def load_w(index):
            stored = ir.VectorType(context.get_value_type(types.float64), 16)
            x = builder.load(place(w, index, stored), align=8)
            return x

        def times(a, b):
            return builder.fmul(a, b, flags=("contract",))

        def add(a, b):
            return builder.fadd(a, b, flags=("contract",))

        def where(x, then):  # x is above 0, and else 0
            return builder.select(builder.fcmp_ordered(">", x, zero), then, zero)

        def magnitude(x):
            integers = ir.VectorType(ir.IntType(64), 16)
            but_sign = ir.Constant(integers, [0x7FFFFFFFFFFFFFFF] * 16)
            return builder.bitcast(builder.and_(builder.bitcast(x, integers), but_sign), vector)

        zero = each(0.0)

        t = builder.load(place(level, word(0), wide), align=8)
        at = alloca_once_value(builder, word(0))  # a row
        parts = [alloca_once_value(builder, zero) for i in range(2)]

        def add_row():
            row = builder.load(at)
            builder.store(builder.add(row, word(1)), at)
            start = builder.mul(row, word(16))
            x, b = load_y(start), load_w(start)
            x = magnitude(x)
            above = builder.fsub(x, times(b, t), flags=("contract",))
            own = where(above, b)
            terms = times(own, where(above, above)), times(own, own)
            for part, term in zip(parts, terms):
                builder.store(add(builder.load(part), term), part)

        def flush():
            for i, part in enumerate(parts):
                total = place(sums, word(16 * i), wide)
                new = builder.load(part)
                builder.store(builder.fadd(builder.load(total, align=8), new), total, align=8)
                builder.store(zero, part)

        with for_range(builder, args[2]):
            add_row()
        flush()
        return context.get_dummy_value()

    return types.void(rows, weights, types.int64, level, sums), codegen


@register_jitable
def exceed(rows, weights, n, level, sums, fine):
    """The same in float64 if `fine`, else in float32."""
    sums[:] = 0.0
    if fine:
        exceed_64(rows, weights, n, level, sums)
    else:
        exceed_32(rows, weights, n, level, sums)


@register_jitable(fastmath=FAST, error_model="numpy")
def search(rows, weights, n, v, u, level, before, sums, hint):
    """The thresholds of 16 groups, as in `solve`; where `before` is -2 they need that.

    `before` has the squares of the last pass, and below 0 is why none follows: -1 for a threshold
    that is found, -2 for sums out of range, -3 for sums that have to be of float64.
    `hint` has what was found of the last ones: thresholds by value, radii by value, and how the former
    fall with the latter.
    """
    excesses, squares = span(sums, 0, 16), span(sums, 16, 16)
    searching = 0
    for c in range(v.size):
        value, radius = v[c], u[c]
        before[c] = -1.0  # nothing to be searched for
        level[c] = chosen(radius >= value, 0.0, np.inf)
        if 0 < radius < FEW * value:
            level[c], before[c] = 0.0, -2.0
        elif 0 < radius < value:
            before[c] = 0.0
            level[c] = max(value * (hint[0] - (radius / value - hint[1]) * hint[2]), 0.0)
            searching += 1
    fine = False
    while searching > 0:
        exceed(rows, weights, n, level, sums, fine)
        searching = 0
        for c in range(v.size):  # without branches
            value, radius = v[c], u[c]
            t, last, square = chosen(fine, level[c], np.float64(np.float32(level[c]))), before[c], squares[c]
            searches = last >= 0
            none = (square == 0) & (last == 0) & (t > 0)  # the guess was right of every value
            under = (last > 0) & (excesses[c] <= radius)
            settled = (square == last) | under
            step = max(t + (excesses[c] - radius) / max(square, 1e-300), 0.0)
            settled |= fine & (t <= step) & (step <= t + NEAR * t)
            aim = chosen(none, 0.0, chosen(under, t, step))
            far = (t > 0) & (2.0 * step <= t)  # a step that is rounded by too much to end with
            state = chosen(none, 0.0, chosen(settled, -1.0, chosen(far, 0.0, square)))
            lost = (not none) & (not settled) & (not ((1e-250 < square) & (square < 1e250)))
            # Sums of float32 will do where their errors are small beside both u and t.
            ordinary = (1e-25 < radius) & (value < 1e25)  # else they may be no numbers
            near = ordinary & (1e-25 < square) & (square < 1e25)
            near &= (not settled) | ((1e-35 < aim) & (0.125 * aim * square < radius) & (radius < 4.0 * aim * square))
            vague = (not fine) & (not none) & (not near)
            state = chosen(vague, -3.0, state)
            lost &= fine
            aim = chosen(fine | ordinary, aim, 0.0)
            aim, state = chosen(lost, 0.0, aim), chosen(lost, -2.0, state)
            level[c] = chosen(searches, aim, level[c])
            before[c] = chosen(searches, state, last)
            searching += chosen(searches & (state >= 0), 1, 0)
        waiting = 0
        for c in range(v.size):
            waiting += chosen(before[c] == -3, 1, 0)
        if searching == 0 and waiting > 0:
            fine, searching = True, waiting
            for c in range(v.size):
                before[c] = chosen(before[c] == -3, 0.0, before[c])
    found = thresholds = radii = falls = 0.0
    for c in range(v.size):
        value, radius = v[c], u[c]
        if 0 < radius < value and before[c] == -1:
            found += 1.0
            thresholds += level[c] / value
            radii += radius / value
            falls += 1.0 / max(squares[c], 1e-300)
    if found > 0 and thresholds < 1e300 and falls < 1e300:
        hint[0], hint[1], hint[2] = thresholds / found, radii / found, falls / found


@cfunc(
    types.int64(
        types.CPointer(types.float32),
        types.CPointer(types.float32),
        types.CPointer(types.int64),
        types.CPointer(types.float64),
        types.CPointer(types.int64),
    ),
    error_model="numpy",
    _nrt=False,
    cache=True,
)
def project(y_at, x_at, geometry, work, desk):
    """Take part in one call; any number of threads may, with the same arguments.

    `geometry` holds extents and offsets, `work` the groups' values, their radii, and room to work;
    a first radius below 0 asks for the values alone. `desk` holds zeros; each thread leaves the bits
    of the highest value that it found in the cell after that of its share. Returns 0.
    """
    axes = fetch(geometry, 37)
    index_size = axes[0]
    y_size = axes[1]
    x_size = axes[2]
    w_size = axes[3]
    memory_size = axes[4]
    seats = axes[5]
    scratch_size = axes[6]
    pitch = axes[8]
    groups = axes[9]
    blocks = axes[10]
    block_size = axes[11]
    items = axes[12]
    labels = axes[13]
    tiles = axes[14]
    extent = axes[15]
    starts_at = axes[16]
    y_bases_at = axes[17]
    x_bases_at = axes[18]
    w_bases_at = axes[19]
    y_lane = axes[24]
    x_lane = axes[25]
    w_lane = axes[26]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    index = span(geometry, 0, index_size)
    y = span(y_at, 0, y_size)
    x = span(x_at, 0, x_size)
    memory = span(work, 0, memory_size)
    w = span(pointer(read(desk, 1)), 0, w_size)
    values = span(memory, 0, groups)
    radii = span(memory, groups, groups)
    at = 2 * groups + seat * scratch_size
    sums_lanes = span(memory, at, LANES)
    at += LANES
    # Of the groups of a strip; of 16 groups; of the last ones.
    v = span(memory, at, STRIP)
    u = span(memory, at + STRIP, STRIP)
    level = span(memory, at + 2 * STRIP, STRIP)
    before = span(memory, at + 3 * STRIP, STRIP)
    at += 4 * STRIP
    found, hint = span(memory, at, 64), span(memory, at + 64, 8)
    line = view(span(memory, at + 72, pitch), np.float32)
    own = view(span(memory, at + 72 + pitch, pitch), np.float64)
    at += 72 + 2 * pitch
    rows = view(span(memory, at, 64 * pitch), np.float32)
    at += 64 * pitch
    weights = view(span(memory, at, 128 * pitch), np.float64)
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        hint[:] = 0.0  # nothing has been found
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            # A tile: groups side by side.
            tile, m = item // labels, item % labels
            outer, past = tile // tiles, tile % tiles * LANES
            first, width = outer * extent + past, min(LANES, extent - past)
            base_y = index[y_bases_at + outer] + past * y_lane
            base_x = index[x_bases_at + outer] + past * x_lane
            base_w = index[w_bases_at + outer] + past * w_lane
            begin, end = index[starts_at + m], index[starts_at + m + 1]
            sums = span(sums_lanes, 0, width)
            if not projecting:
                if measure(y, w, begin, end, base_y, base_w, width, index, axes, sums):
                    highest = bits_of(np.inf)  # weights are looked at again
                for c in range(width):
                    value = sums[c]
                    values[(first + c) * labels + m], highest = value, max(highest, bits_of(value))
                continue
            for strip in range(0, width, STRIP):
                number = min(STRIP, width - strip)
                n = take(y, w, begin, end, base_y + strip, base_w + strip, number, pitch, index, axes, rows, weights)
                v[:], u[:] = 0.0, 0.0  # of columns that there are not
                for c in range(number):
                    group = (first + strip + c) * labels + m
                    v[c], u[c] = values[group], radii[group * radius_step]
                for c in range(0, number, 16):
                    search(span(rows, c * pitch, 16 * n), span(weights, c * pitch, 16 * n), n, span(v, c, 16), span(u, c, 16), span(level, c, 16), span(before, c, 16), found, hint)
                for c in range(number):
                    if before[c] == -2:  # what the sums have no range for is worked on alone
                        lone(rows, weights, c, n, pitch, line, own)
                        solve(span(line, 0, n), span(own, 0, n), v[c], u[c], 0.0)
                        for j in range(n):
                            rows[(c - c % 16) * pitch + 16 * j + c % 16] = line[j]
                put(x, begin, end, base_x + strip, number, pitch, index, axes, rows, weights, level, line)
