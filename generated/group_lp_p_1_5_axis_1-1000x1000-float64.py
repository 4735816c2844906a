"""lp(p=1.5): groups of float64 arrays.

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
P = 1.5
STEEPEST = 1.0 / (P - 1.0)  # how z can fall with c
TURNS = 200  # of a search, at most; some five are usual
PART = 512  # elements that are summed together
SETTLED = 1.4e-07  # a step of Newton's method for z after which its error is beyond float64
LAST = 1.5e-07  # the same, for log t
BITS = 6755399441055744.0  # 1.5 * 2**52: with it added, a float's last bits are an integer's
HALF_ROOT = np.int64(0x3FE6A09E667F3BCD)  # the bits of sqrt(1/2)
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


@register_jitable
def bits_of(value):
    """The bits of a float but its sign; those of infinity and NaN are the highest."""
    return view(np.float64(value), np.int64) & np.int64(0x7FFFFFFFFFFFFFFF)


@register_jitable(fastmath=FAST)
def value_of(row):
    """The length of a group in lp; NaN if one is not finite."""
    total = 0.0
    for j in range(row.size):
        a = abs(np.float64(row[j]))
        total += a * np.sqrt(a)
    if 1e-280 < total < 1e300:
        return total ** (1.0 / P)
    bits = np.int64(0)  # those of NaN are above those of infinity
    for j in range(row.size):
        bits = max(bits, view(np.float64(abs(np.float64(row[j]))), np.int64) & MAGNITUDE)
    top = view(np.int64(bits), np.float64)
    if not 0 < top < np.inf:
        return top
    return top * powers(row, top) ** (1.0 / P)


@register_jitable(fastmath=FINITE, error_model="numpy")
def powers(row, top):
    """The sum of the powers of a group's finite values, the largest of which is top, by that one's."""
    total = 0.0
    for j in range(row.size):
        a = abs(np.float64(row[j])) / top
        power = np.sqrt(a)
        power *= a
        total += power
    return total


@register_jitable(fastmath={"contract"})
def log(x):
    """The logarithm of 0 < x <= 1, and a number below all of them for 0; without a branch."""
    bits = view(np.float64(x * 1.2676506002282294e30), np.int64)  # times 2**100: never subnormal
    k = (bits - HALF_ROOT) >> 52
    f = view(np.int64(bits - (k << 52)), np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    r = 0.1479819860511658591
    r = r * z + 0.1531383769920937332
    r = r * z + 0.1818357216161805012
    r = r * z + 0.2222219843214978396
    r = r * z + 0.2857142874366239149
    r = r * z + 0.3999999999940941908
    r = r * z + 0.6666666666666735130
    half = 0.5 * f * f
    whole = np.float64(k) - 100.0
    return whole * 0.6931471803691238 - (half - (s * (half + r * z) + whole * 1.9082149292705877e-10) - f)


@register_jitable(fastmath={"contract"})
def exp(x):
    """The exponential of -708 < x < 708, or of the nearest x that is; without a branch."""
    x = min(max(x, -708.0), 708.0)
    whole = np.float64(x * 1.4426950408889634 + BITS)
    k = whole - BITS
    r = x - k * 0.693145751953125 - k * 1.42860682030941723212e-6
    q = 1.0 / 6227020800.0
    q = q * r + 1.0 / 479001600.0
    q = q * r + 1.0 / 39916800.0
    q = q * r + 1.0 / 3628800.0
    q = q * r + 1.0 / 362880.0
    q = q * r + 1.0 / 40320.0
    q = q * r + 1.0 / 5040.0
    q = q * r + 1.0 / 720.0
    q = q * r + 1.0 / 120.0
    q = q * r + 1.0 / 24.0
    q = q * r + 1.0 / 6.0
    q = q * r + 1.0 / 2.0
    q = q * r + 1.0
    q = q * r + 1.0
    return view(np.int64(view(np.float64(q), np.int64) + (view(whole, np.int64) << 52)), np.float64)


@register_jitable(error_model="numpy")
def aim(length, ratio, fall):
    """By how much log t is to change for a length that changes by `fall` times that to become
    `ratio`: both lengths are logarithms, of parts of the group's value.

    Newton's method for log (1 - y) - (P - 1) log y, y being the part: of equal values it is linear.
    """
    if not (length < 0 and fall < 0):
        return 1.0 if length > ratio else -1.0
    height = math.log(-math.expm1(length)) - (P - 1.0) * length
    goal = math.log(-math.expm1(ratio)) - (P - 1.0) * ratio
    return (height - goal) / ((1.0 / math.expm1(-length) + P - 1.0) * fall)


@register_jitable(fastmath=FINITE, error_model="numpy")
def shrink_float64(row, t, unit, spare):
    """On t, of a group's values in some units: eight times the sum of x^P; and of such terms
    times how their logarithms fall with log t, by 3.

    With r^2 = t^2 + 4 a and q = 1 / (t + r) the root of x is 2 a q. `unit` times values
    are 4 a. `spare` gets each q.
    """
    total, slope = 0.0, 0.0
    for start in range(0, row.size, PART):
        size = min(PART, row.size - start)
        part = span(row, start, size)
        kept = span(view(spare, np.float64), start, size)
        part_total, part_slope = np.float64(0), np.float64(0)
        for j in range(part.size):
            a = abs(np.float64(part[j])) * unit
            r = np.sqrt(t * t + a)
            by = np.float64(1) / max(r * (t + r), np.float64(1e-200))
            q = r * by
            kept[j] = q
            x = a * q
            term = x * x * x
            part_slope += term * t * (t + r) * by
            part_total += term
        total += np.float64(part_total)
        slope += np.float64(part_slope)
    return total, slope


@register_jitable(fastmath=FINITE, error_model="numpy")
def apply_float64(row, target, t, unit, spare):
    """Write a group's projection, t being near the last one of `shrink`: by Newton's method for q."""
    kept = span(view(spare, np.float64), 0, row.size)
    for j in range(row.size):
        a = abs(np.float64(row[j])) * unit
        q = kept[j]
        q = np.float64(0.5) * (a * q * q + np.float64(1)) / max(a * q + t, np.float64(1e-100))
        target[j] = row[j] * min(a * q * q, np.float64(1))


@register_jitable(error_model="numpy")
def search_float64(row, t, unit, v, ratio, near, spare):
    """The t of a group with value v in those units, from a guess, and whether it is found."""
    low, high = 0.0, np.inf
    for turn in range(TURNS):
        total, slope = shrink_float64(row, np.float64(t), np.float64(unit), spare)
        if not total > 0:
            break
        length = (math.log(total) - math.log(8.0)) / P - math.log(v)
        low, high = (t, high) if length > ratio else (low, t)
        move = aim(length, ratio, -2.0 * slope / total)
        t *= math.exp(min(max(move, -20.0), 20.0))
        if abs(move) <= near:
            return t, True
        if not low < t < high:
            t = math.sqrt(low * high) if 0 < low and high < np.inf else t
        if not 1e-90 < t < 1e90:
            break
    return t, False


@register_jitable(fastmath=FINITE, error_model="numpy")
def approach(lengths, shifts, depths, slopes, steps, t, moved, top):
    """A step towards the z of each element for which exp(z) + exp(c + (P - 1) z) is 1, c = t + shift:
    where the slopes dz / dc lead from the last z, and a step of Newton's method from there. Also
    the sum of exp(length + P z - top), how it falls with t, what the steps made of it, and how far
    the longest step was.

    The exponentials' sum is convex and increases with z: steps lead above the solution, or down to it.
    """
    total, slope, made, longest = 0.0, 0.0, 0.0, np.int64(0)
    for j in range(min(lengths.size, min(min(shifts.size, depths.size), min(slopes.size, steps.size)))):
        c = t + shifts[j]
        highest = min(0.0, -c * STEEPEST)
        z = min(depths[j] + slopes[j] * moved, highest)
        one, other = exp(z), exp(c + (P - 1.0) * z)
        by = 1.0 / (one + (P - 1.0) * other)
        nearer = min(z - (one + other - 1.0) * by, highest)
        step = nearer - z
        steps[j] = step
        depths[j] = nearer
        fall = -other * by
        slopes[j] = fall
        part = exp(lengths[j] + P * nearer - top)
        total += part
        slope += part * fall
        made += part * abs(step)
    for j in range(steps.size):
        longest = max(longest, view(np.float64(steps[j]), np.int64) & MAGNITUDE)
    return total, slope, made, view(np.int64(longest), np.float64)


@register_jitable(fastmath=FINITE, error_model="numpy")
def solve(row, target, spare, v, u, guess):
    """Project a group with value v on radius u < v; what `aim` has that is linear, as a guess for the
    next group, and 0.

    In logarithms: x = a exp(z), and z depends only on c = log t + P log w + (P - 2) log a. Newton's
    method, with a bracket, for the log t at which x is as long as u, while z is found as well.
    """
    if u <= 0:
        for j in range(row.size):
            target[j] = math.copysign(0.0, row[j])
        return 0.0, 0.0
    # Values from 0 to 1, by a power of two.
    bits = np.int64(0)
    for j in range(row.size):
        bits = max(bits, view(np.float64(abs(np.float64(row[j]))), np.int64) & MAGNITUDE)
    scale = math.ldexp(1.0, min(1000, max(-1000, -math.frexp(view(np.int64(bits), np.float64))[1])))
    ratio = math.log(u / v) if u / v > 0 else math.log(u) - math.log(v)
    value = v * scale
    # What log t would be for one value, or many equal ones, of length 1.
    height = math.log(-math.expm1(ratio)) - (P - 1.0) * ratio if ratio < 0 else -40.0
    if -20.0 < ratio < 0.0 and 1e-30 < value < 1e30 and 1e-30 < scale < 1e30:
        base = height + (2.0 - P) * math.log(value)
        t = math.exp(base + guess)
        t, found = search_float64(row, t, 4.0 * scale, value, ratio, 1e-6, spare)
        if found:
            apply_float64(row, target, t, 4.0 * scale, spare)
            return math.log(t) - base, 0.0
    # Values, weights or radii that this has no range for, or a search that has not ended.
    n = row.size
    # By element: log (w a)^P, and c - log t.
    lengths, shifts, depths = span(spare, 0, n), span(spare, n, n), span(spare, 2 * n, n)
    slopes, steps = span(spare, 3 * n, n), span(spare, 4 * n, n)
    longest, first = -1e300, 0.0
    for j in range(min(n, min(min(lengths.size, shifts.size), min(depths.size, slopes.size)))):
        depths[j] = slopes[j] = 0.0
        a = abs(np.float64(row[j])) * scale
        size = log(a)
        shifts[j] = (P - 2.0) * size if a > 0 else -1e300
        lengths[j] = P * size if a > 0 else -1e300
    for j in range(n):
        if lengths[j] > longest:
            longest, first = lengths[j], shifts[j]
    goal = math.log(u) + math.log(scale)
    t = height - first
    low, high = -1e300, 1e300
    moved, top = 0.0, longest + P * min(ratio, 0.0)
    for turn in range(TURNS):
        total, slope, made, far = approach(lengths, shifts, depths, slopes, steps, t, moved, top)
        if not 1e-200 < total < 1e200:  # beside another top, then
            top, moved = -1e300, 0.0
            for j in range(n):
                top = max(top, lengths[j] + P * depths[j])
            continue
        length = (math.log(total) + top) / P - goal
        # What z are not yet, they are too high, by less than their last steps: a length that is too
        # short is so all the more, and one that is too long may not be.
        made *= P / total
        settled = max(far, made) <= SETTLED
        surely = P * length > -math.log1p(-made) if made < 0.1 else False
        if length < 0:
            high = t
        elif surely:
            low = t
        elif not settled:
            moved = 0.0
            continue
        moved = min(max(aim(length + ratio, ratio, slope / total), -40.0), 40.0)
        if settled and abs(moved) <= LAST + 4e-16 * abs(t):
            break
        if not low < t + moved < high:
            moved = low + (high - low) / 2 - t if high - low < 1e300 else moved
        if settled and t + moved == t:
            break
        t += moved
    for j in range(min(n, min(depths.size, slopes.size))):
        target[j] = math.copysign(abs(np.float64(row[j])) * min(1.0, exp(depths[j] + slopes[j] * moved)), row[j])
    return 0.0, 0.0


@cfunc(
    types.int64(
        types.CPointer(types.float64),
        types.CPointer(types.float64),
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
    y_lane = axes[24]
    x_lane = axes[25]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    index = span(geometry, 0, index_size)
    y = span(y_at, 0, y_size)
    x = span(x_at, 0, x_size)
    memory = span(work, 0, memory_size)
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
            row = span(y, at_y, pitch)
            target = span(x, at_x, pitch)
            if not projecting:
                value = value_of(row)
                values[item], highest = value, max(highest, bits_of(value))
            elif values[item] > radii[item * radius_step]:
                v, u = values[item], radii[item * radius_step]
                found, fall = solve(row, target, spare, v, u, found - (u / v - share) * fall)
                share = u / v
            else:
                for j in range(row.size):
                    target[j] = row[j]
