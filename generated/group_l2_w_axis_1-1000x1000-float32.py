"""l2(w): groups of float32 arrays.

    a group is contiguous in memory, and is worked on where it lies

A group's elements are read for its value, and in a second call to project it.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
MINUS_ZERO = np.uint64(1 << 63)  # its bits: those of weights below it are higher
TURNS = 200  # of Newton, at most; some three are usual
PART = 1024  # elements, whose sums are short enough for float32
LONG = 65536  # elements: of so many some parts say first where to start
NEAR = 3e-4  # a step, by t, after which the error is beyond the array's type
CLOSE = 1e-7  # how wrong a t may be
LEAST = 1e-2  # a t to begin with, beside the largest weight: 0 says nothing of how the length falls
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
def negative(weights):
    """Whether one of them is below 0."""
    most = np.uint64(0)
    for j in range(weights.size):
        most = max(most, view(np.float64(weights[j]), np.uint64))
    return most > MINUS_ZERO


@register_jitable(fastmath=FAST)
def value_of(row, w):
    """The length of a group, each value times its weight; NaN if one is not finite."""
    total = 0.0
    for j in range(row.size):
        a = np.float64(w[j]) * abs(np.float64(row[j]))
        total += a * a
    if 1e-280 < total < 1e300:
        return math.sqrt(total)
    top, spoilt = 0.0, 0.0
    for j in range(row.size):
        a = np.float64(w[j]) * abs(np.float64(row[j]))
        top = max(top, a)
        spoilt += a * 0.0
    if not (0 < top < np.inf and spoilt == 0):
        return top + spoilt
    total = 0.0
    for j in range(row.size):
        a = np.float64(w[j]) * abs(np.float64(row[j])) / top
        total += a * a
    return top * math.sqrt(total)


@register_jitable
def unit_of(weight):
    """The power of two by which a weight, or 0, comes to lie between 1/2 and 1, so that squares of
    weights stay in range."""
    return min(1000, max(-1000, -math.frexp(weight)[1]))


@register_jitable(fastmath=FINITE, error_model="numpy")
def light(row, w, bound):
    """The length of a group's values whose weights are below a bound; the largest such weight."""
    longest, heaviest = 0.0, 0.0
    for j in range(row.size):
        if w[j] < bound:
            longest = max(longest, np.float64(w[j]) * abs(np.float64(row[j])))
            heaviest = max(heaviest, np.float64(w[j]))
    total = 0.0
    for j in range(row.size):
        b = np.float64(w[j]) * abs(np.float64(row[j])) / longest if w[j] < bound and longest > 0 else 0.0
        total += b * b
    return longest * math.sqrt(total), heaviest


@register_jitable(error_model="numpy")
def further(total, first, second, third, fourth, fifth, ratio, most):
    """By what t is to be multiplied for the length to be `ratio` times what it is; how wrong that may
    be, by t; and by how much log t then falls with the length's.

    The sums are those of b^2 z^k, of values b and z = t d / (1 + t d), which is between 0 and `most`.
    With (1 + e) t for t, b is divided by 1 + e z, that is (1 + e c) (1 + f (z - c)) for the mean c of
    z and f = e / (1 + e c): the square of the length by its series in f, to degree 5.
    """
    one = 1.0 / total
    c, two, three, four, five = first * one, second * one, third * one, fourth * one, fifth * one
    ease = 1.0 / c
    f, widest = (1.0 - ratio) * ease, max(c, most - c)
    if not abs(f) * widest < 0.2:  # the series is too slow: Newton's method for one over the length
        return max((1.0 + f * (1.0 - c)) / ratio, 1e-8), np.inf, ease
    # Of (1 + f (z - c))^-2, by the central moments of z.
    by_2 = 3.0 * max(two - c * c, 0.0)
    by_3 = -4.0 * (three - c * (3.0 * two - 2.0 * c * c))
    by_4 = 5.0 * max(four - c * (4.0 * three - c * (6.0 * two - 3.0 * c * c)), 0.0)
    by_5 = -6.0 * (five - c * (5.0 * four - c * (10.0 * three - c * (10.0 * two - 4.0 * c * c))))
    # Where that is `ratio`, by f's own equation twice, and a step of Newton's method.
    near, part = f, 0.5 * ratio * ease
    f = near + part * by_2 * near * near
    f = near + part * f * f * (by_2 + by_3 * f)
    rest = 1.0 - f * c
    series = 1.0 + f * f * (by_2 + f * (by_3 + f * (by_4 + f * by_5)))
    slope = f * (2.0 * by_2 + f * (3.0 * by_3 + f * (4.0 * by_4 + f * 5.0 * by_5)))
    step = (rest * rest * series - ratio * ratio) / (rest * (2.0 * c * series - rest * slope))
    f += step
    # At most half of what comes next in the series (7 / 5 of this), and all that can come after it; and
    # what that step leaves.
    near = 1.0 / (1.0 - abs(f) * widest)
    far = f * f * near * near
    miss = 0.7 * by_4 * widest * widest * far * far * far * near * near * ease + 8.0 * step * step
    return max((1.0 + f * (1.0 - c)) / (1.0 - f * c), 1e-30), miss, ease


@register_jitable(fastmath=FINITE, error_model="numpy")
def draft(row, w, u, t, skip):
    """The t of `solve`, from a guess, by sums of float32; how it falls; and whether that is good
    enough.

    Each part begins `skip` elements after the last. For numbers of ordinary sizes, which weights are
    seen to have on the way.
    """
    times = max(skip / PART, 1.0)
    for turn in range(20):
        level = np.float32(t)
        total = first = second = third = fourth = fifth = 0.0
        high = np.int32(0)
        for start in range(0, row.size, skip):
            size = min(PART, row.size - start)
            part, own = span(row, start, size), span(w, start, size)
            part_total = part_first = part_second = part_third = part_fourth = part_fifth = np.float32(0)
            for j in range(part.size):
                b = np.float32(own[j])
                high = np.int32(max(high, view(np.float32(b), np.int32)))
                d = b * b * level
                q = np.float32(1) / (np.float32(1) + d)
                b *= part[j] * q
                z, share = d * q, b * b
                part_total += share
                share *= z
                part_first += share
                share *= z
                part_second += share
                share *= z
                part_third += share
                share *= z
                part_fourth += share
                share *= z
                part_fifth += share
            total += times * np.float64(part_total)
            first += times * np.float64(part_first)
            second += times * np.float64(part_second)
            third += times * np.float64(part_third)
            fourth += times * np.float64(part_fourth)
            fifth += times * np.float64(part_fifth)
        top = np.float64(view(np.int32(high), np.float32))
        if not 1e-6 < top < 1e6:
            break
        if not (1e-30 < total and 1e-30 < second):  # so short that their terms are rounded
            break
        last = np.float64(level)
        most = last * top * top
        factor, miss, ease = further(total, first, second, third, fourth, fifth, u / math.sqrt(total), most / (1.0 + most))
        settled = miss * most <= CLOSE * (1.0 + most * factor)
        if settled:
            return last * factor, ease * last * factor / u, True
        t = max(last * factor, LEAST / (top * top))
        if not t * top * top < 1e15:
            break
    return 0.0, 0.0, False


@register_jitable(fastmath=FINITE, error_model="numpy")
def solve(row, target, w, spare, v, u, guess):
    """Project a group with value v on radius u < v; the t below, and how it falls with u / v.

    With b = w a / v and d = w^2, x = a / (1 + t d): Newton's method for the t at which the length
    of b / (1 + t d) is u / v, from a guess. One over that length is concave in t: a step from the
    right of the solution lands on its left, steps from the left climb to it.
    """
    if u > max(1e-12 * v, 1e-15) and v < 1e15:
        t = guess if 0 < guess < 1e20 else 1.0
        if row.size >= LONG:
            t = draft(row, w, u, t, row.size // 16)[0]
            t = t if t > 0 else 1.0
        t, fall, settled = draft(row, w, u, t, PART)
        if settled:
            level = np.float32(t * (1.0 + 6e-8))  # not below
            for j in range(row.size):
                b = np.float32(w[j])
                target[j] = row[j] / (np.float32(1) + b * b * level)
            return t, fall * v
    high = np.int64(0)
    for j in range(w.size):
        high = np.int64(max(high, np.int64(view(np.float64(w[j]), np.int64) & MAGNITUDE)))
    # Weights from 0 to 1, so that their squares stay in range.
    top = np.float64(view(np.int64(high), np.float64))
    scale = math.ldexp(1.0, unit_of(top))
    if u <= 0:
        for j in range(row.size):
            target[j] = math.copysign(abs(np.float64(row[j])) if w[j] == 0 else 0.0, row[j])
        return 0.0, 1.0
    low, heavy = np.inf, np.inf
    for j in range(w.size):
        low = min(low, np.float64(w[j]) if w[j] > 0 else np.inf)
    while low * scale < 1e-150:
        # Beside the heaviest weights, the squares of these have no room: do they go beyond u alone?
        # If not they are free, and the others have what they leave.
        length, top = light(row, w, 1e-150 / scale)
        if not length > u:
            u *= max(math.sqrt(1.0 - (length / u) ** 2), 1e-8)
            break
        heavy, v = 1e-150 / scale, length
        scale = math.ldexp(1.0, unit_of(top))
    goal = u / v
    squares, bends = span(spare, 0, row.size), span(spare, row.size, row.size)
    for j in range(min(row.size, min(squares.size, bends.size))):
        b = np.float64(w[j]) * abs(np.float64(row[j])) / v
        squares[j] = b * b if w[j] < heavy else 0.0
        d = np.float64(w[j]) * scale
        bends[j] = (d * d if w[j] < heavy else 1e300) if d > 0 else 0.0
    mild = 1e-100 < scale < 1e100 and heavy == np.inf
    t, fall = max(guess / scale / scale, 0.0) if mild else 0.0, 0.0
    climbs = False  # after a long step from the right, which is rounded by too much, nothing is known
    for turn in range(TURNS):
        total, slope = 0.0, 0.0
        for j in range(min(squares.size, bends.size)):
            q = 1.0 / (1.0 + t * bends[j])
            share = squares[j] * q * q
            total += share
            slope += share * q * bends[j]
        if turn == 0 and t > 0 and not slope > 1e-280:  # a guess so far right that the sums vanish
            t = 0.0
            continue
        length = math.sqrt(total)
        if not slope > 0 or (climbs and not length > goal * (1 + 1e-15)):
            break
        fall = length / slope
        step = total * (length / goal - 1.0) / slope
        last, t = t, max(t + step, 0.0)
        if t == last or abs(t - last) <= NEAR * t:
            break
        climbs = 2.0 * t > last
    for j in range(min(row.size, bends.size)):
        target[j] = math.copysign(abs(np.float64(row[j])) / (1.0 + t * bends[j]), row[j])
    return (t * scale * scale, fall * scale * scale) if mild else (0.0, 1.0)


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
    spare_size = axes[7]
    pitch = axes[8]
    groups = axes[9]
    blocks = axes[10]
    block_size = axes[11]
    items = axes[12]
    labels = axes[13]
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
    spare = span(memory, 2 * groups + (seat + 1) * scratch_size - spare_size, spare_size)
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        # Of the last group: what its search found, for which radius by value, and how it falls with that.
        found, share, fall = 0.0, 0.0, 1.0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            first = item
            outer, past = first // extent, first % extent
            at_y = index[y_bases_at + outer] + past * y_lane
            at_x = index[x_bases_at + outer] + past * x_lane
            at_w = index[w_bases_at + outer] + past * w_lane
            row = span(y, at_y, pitch)
            target = span(x, at_x, pitch)
            own = span(w, at_w, pitch)
            if not projecting:
                value = np.inf if negative(own) else value_of(row, own)
                values[item], highest = value, max(highest, bits_of(value))
            elif values[item] > radii[item * radius_step]:
                v, u = values[item], radii[item * radius_step]
                t, slope = solve(row, target, own, spare, v, u, found + (min(share * v / max(u, 1e-300), 1e6) - 1.0) * share * fall)
                if u > 0:  # else there was no search
                    found, share, fall = t, u / v, slope
            else:
                for j in range(row.size):
                    target[j] = row[j]
