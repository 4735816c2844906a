"""lp(p=1.5, groups): groups of float32 arrays.

    groups lie side by side in memory: 256 are worked on together, where they lie

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
LANES = 256  # groups side by side that are worked on together
P = 1.5
STEEPEST = 1.0 / (P - 1.0)  # how z can fall with c
TURNS = 200  # of a search, at most; some five are usual
TRIES = 16  # of the search for a tile's groups; some three are usual
# Groups whose values, or what is to be found of these, are not between these are solved alone.
SHORT, LONG = 1e-12, 1e12
LEAST, MOST = 1e-5, 1e2
FEW = 32  # rows whose sums are short enough for float32
THIRD = np.int64(715094163 << 32)  # two thirds of the bits of 1, so to speak: from a third to a root
NEAR = 9e-8  # the square of a step of log t that needs no other one after it
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


@register_jitable(fastmath={"contract"}, error_model="numpy")
def third_root(x):
    """The third root of a positive number; without a branch."""
    bits = view(np.float64(x), np.int64)
    third = (bits >> 2) + (bits >> 4)
    third += third >> 4
    third += third >> 8
    third += third >> 16
    r = view(np.int64(third + THIRD), np.float64)
    for turn in range(2):
        cube = r * r * r
        r *= (cube + x + x) / (cube + cube + x)
    return r


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
def solve(row, spare, v, u, guess):
    """Project a group with value v on radius u < v; what `aim` has that is linear, as a guess for the
    next group, and 0.

    In logarithms: x = a exp(z), and z depends only on c = log t + P log w + (P - 2) log a. Newton's
    method, with a bracket, for the log t at which x is as long as u, while z is found as well.
    """
    if u <= 0:
        for j in range(row.size):
            row[j] = math.copysign(0.0, row[j])
        return 0.0, 0.0
    # Values from 0 to 1, by a power of two.
    high = np.int32(0)
    for j in range(row.size):
        high = np.int32(max(high, view(np.float32(abs(row[j])), np.int32)))
    bits = bits_of(view(np.int32(high), np.float32))
    scale = math.ldexp(1.0, min(1000, max(-1000, -math.frexp(view(np.int64(bits), np.float64))[1])))
    ratio = math.log(u / v) if u / v > 0 else math.log(u) - math.log(v)
    # What log t would be for one value, or many equal ones, of length 1.
    height = math.log(-math.expm1(ratio)) - (P - 1.0) * ratio if ratio < 0 else -40.0
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
        row[j] = math.copysign(abs(np.float64(row[j])) * min(1.0, exp(depths[j] + slopes[j] * moved)), row[j])
    return 0.0, 0.0


@register_jitable
def take(y, begin, end, base_y, width, index, axes, c, line):
    """Copy one group of a tile; how many elements it has."""
    j = 0
    y_offsets = span(index, axes[31], end)
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        line[j] = y[at_y + c]
        j += 1
    return j


@register_jitable
def put(x, begin, end, base_x, c, index, axes, line):
    """Write one group of a tile."""
    j = 0
    x_offsets = span(index, axes[33], end)
    for o in range(begin, end):
        at_x = base_x + x_offsets[o]
        x[at_x + c] = line[j]
        j += 1


@register_jitable(fastmath=FAST)
def measure(y, begin, end, base_y, width, index, axes, sums):
    """The sums of the powers of the groups of a tile."""
    sums[:] = 0.0
    y_offsets = span(index, axes[31], end)
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        row_0 = span(y, at_y, width)
        for c in range(width):
            sum = sums[c]
            a = abs(np.float64(row_0[c]))
            s = np.float64(np.sqrt(np.float32(a)))
            sum += s * (1.5 * a - 0.5 * s * s)
            sums[c] = sum


@register_jitable(fastmath=FAST, error_model="numpy")
def roots(sums, lengths):
    """The lengths of groups whose powers have these sums; 0, infinity and NaN are their own."""
    for c in range(min(sums.size, lengths.size)):
        total = sums[c]
        root = third_root(total)
        lengths[c] = root * root if 0 < total < np.inf else total


@register_jitable(fastmath=FAST)
def shrink(y, begin, end, base_y, width, index, axes, level, totals, slopes):
    """Eight times the sums of the powers of the groups of a tile, as they are where their t is `level`; and
    of such terms times how their logarithms fall with log t, by 3."""
    totals[:] = 0
    slopes[:] = 0
    y_offsets = span(index, axes[31], end)
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        row_0 = span(y, at_y, width)
        for c in range(width):
            t = level[c]
            total = totals[c]
            slope = slopes[c]
            a = abs(row_0[c])
            a *= np.float32(4)
            r = np.sqrt(t * t + a)
            by = np.float32(1) / max(r * (t + r), np.float32(1e-36))
            x = a * r * by
            term = x * x * x
            slope += term * t * (t + r) * by
            total += term
            totals[c] = total
            slopes[c] = slope


@register_jitable(fastmath=FINITE, error_model="numpy")
def write(y, x, begin, end, base_y, base_x, width, index, axes, level):
    """The projection of the groups of a tile, whose levels are found."""
    y_offsets = span(index, axes[31], end)
    x_offsets = span(index, axes[33], end)
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        row_0 = span(y, at_y, width)
        at_x = base_x + x_offsets[o]
        target = span(x, at_x, width)
        for c in range(width):
            t = level[c]
            y_c = row_0[c]
            q = np.float32(1) / max(t + np.sqrt(t * t + np.float32(4) * abs(y_c)), np.float32(1e-36))
            target[c] = y_c * min(np.float32(4) * abs(y_c) * q * q, np.float32(1)) if t > 0 else y_c


@register_jitable(fastmath=FAST, error_model="numpy")
def search(y, begin, end, base_y, width, index, axes, v, u, level, totals, slopes, before, found, goals, sums):
    """The t of the groups of a tile, as in `solve`; how many need that, and a level of 0.

    Of the length's part y of the value, (1 - y) y^(1 - P) is in proportion to t where values are equal:
    Newton's method for the logarithm of that. `before` is 0 while a group's t is searched for, -1 then,
    and -2 where it is not found. `found` is how the t of the last tile's groups were to those of equal
    values, and becomes that of this one's.
    """
    size = end - begin
    usual, searching, alone = size ** (-1.0 / 3.0), 0, 0
    # Loops without branches, over a few vectors each: of many, no compiler checks that they are apart.
    for c in range(width):
        part = min(u[c] / v[c], 2.0)
        goal = (1.0 - part) / np.sqrt(part)
        goals[c] = min(goal, 1e300) if u[c] > 0 else np.inf
    for c in range(width):
        value, goal = v[c], goals[c]
        outside = (goal > 0) & (goal < np.inf)
        searches = outside & (SHORT < value) & (value < LONG) & (LEAST < goal) & (goal < MOST)
        level[c] = found[c] * usual * goal * np.sqrt(value) if searches else 0.0
        before[c] = 0.0 if searches else -2.0 if outside else -1.0
        searching += 1 if searches else 0
    few = view(sums, np.float32)
    few_totals, few_slopes = span(few, 0, width), span(few, width, width)
    for turn in range(TRIES):
        if searching == 0:
            break
        totals[:] = 0.0
        slopes[:] = 0.0
        for start in range(begin, end, FEW):
            shrink(y, start, min(start + FEW, end), base_y, width, index, axes, level, few_totals, few_slopes)
            for c in range(width):
                totals[c] += np.float64(few_totals[c])
                slopes[c] += np.float64(few_slopes[c])
        searching = 0
        for c in range(width):
            value, goal, total = v[c], goals[c], totals[c]
            root = third_root(total * (0.125 / (value * np.sqrt(value))))
            part = min(root * root, 1.0 - 1e-7)
            rest, aim = 1.0 - part, goal * root
            rise = (part + part + rest) * slopes[c]  # by total and rest, of the logarithm with log t
            lean = (aim - rest) * rest * total / ((aim + rest) * rise)  # half of log t's step, about
            totals[c], slopes[c] = min(max(lean, -0.9), 0.9), rest
        for c in range(width):
            lean, searches = totals[c], before[c] == 0
            settled = 4.0 * lean * lean * slopes[c] <= NEAR
            level[c] *= (1.0 + lean) / (1.0 - lean) if searches else 1.0
            before[c] = -1.0 if searches & settled else before[c]
            searching += 1 if searches & (not settled) else 0
    for c in range(width):
        value, goal, t = v[c], goals[c], np.float64(level[c])
        lost, dead = before[c] != -1, goal == np.inf
        found[c] = found[c] if lost | (t == 0) else t / (usual * goal * np.sqrt(value))
        level[c] = 0.0 if lost else np.inf if dead else t
        alone += 1 if lost else 0
    return alone


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
    tiles = axes[14]
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
    at = 2 * groups + seat * scratch_size
    sums_lanes = span(memory, at, LANES)
    level_lanes = span(memory, at + LANES, LANES)
    v_lanes = span(memory, at + 2 * LANES, LANES)
    u_lanes = span(memory, at + 3 * LANES, LANES)
    totals_lanes = span(memory, at + 4 * LANES, LANES)
    slopes_lanes = span(memory, at + 5 * LANES, LANES)
    before_lanes = span(memory, at + 6 * LANES, LANES)
    found_lanes = span(memory, at + 7 * LANES, LANES)
    goals_lanes = span(memory, at + 8 * LANES, LANES)
    at += 9 * LANES
    rows = view(span(memory, at, pitch // 2), np.float32)
    spare = span(memory, 2 * groups + (seat + 1) * scratch_size - spare_size, spare_size)
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        found_lanes[:] = 1.0  # as of equal values
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            # A tile: groups side by side, all with one label.
            tile, m = item // labels, item % labels
            outer, past = tile // tiles, tile % tiles * LANES
            first, width = outer * extent + past, min(LANES, extent - past)
            base_y = index[y_bases_at + outer] + past * y_lane
            base_x = index[x_bases_at + outer] + past * x_lane
            begin, end = index[starts_at + m], index[starts_at + m + 1]
            sums = span(sums_lanes, 0, width)
            level = span(view(level_lanes, np.float32), 0, width)
            v = span(v_lanes, 0, width)
            u = span(u_lanes, 0, width)
            totals = span(totals_lanes, 0, width)
            slopes = span(slopes_lanes, 0, width)
            before = span(before_lanes, 0, width)
            found = span(found_lanes, 0, width)
            goals = span(goals_lanes, 0, width)
            if not projecting:
                measure(y, begin, end, base_y, width, index, axes, sums)
                roots(sums, v)
                for c in range(width):
                    value = v[c]
                    values[(first + c) * labels + m], highest = value, max(highest, bits_of(value))
                continue
            for c in range(width):
                group = (first + c) * labels + m
                v[c], u[c] = values[group], radii[group * radius_step]
            alone = search(y, begin, end, base_y, width, index, axes, v, u, level, totals, slopes, before, found, goals, sums)
            write(y, x, begin, end, base_y, base_x, width, index, axes, level)
            for c in range(width if alone > 0 else 0):
                if before[c] != -1:
                    n = take(y, begin, end, base_y, width, index, axes, c, rows)
                    solve(span(rows, 0, n), spare, v[c], u[c], 0.0)
                    put(x, begin, end, base_x, c, index, axes, rows)
