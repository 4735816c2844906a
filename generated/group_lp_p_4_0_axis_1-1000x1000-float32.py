"""lp(p=4.0): groups of float32 arrays.

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
P = 4.0
STEEPEST = 1.0 / (P - 1.0)  # how z can fall with c
TURNS = 200  # of a search, at most; some five are usual
PART = 512  # elements, whose sums are short enough for float32
TRIES = 12  # of a search that is not in logarithms alone; two or three are usual
SHARP = 0.06666666666666667  # how wrong an equation may be for its terms to be kept
LEAP = 0.1  # of log t: further than that terms are found anew
SETTLED = 8.2e-08  # a step of Newton's method for z after which its error is beyond float64
LAST = 3.0e-07  # the same, for log t
BITS = 6755399441055744.0  # 1.5 * 2**52: with it added, a float's last bits are an integer's
HALF_ROOT = np.int64(0x3FE6A09E667F3BCD)  # the bits of sqrt(1/2)
BITS_SINGLE = np.float32(12582912.0)  # the same of float32: 1.5 * 2**23
HALF_ROOT_SINGLE = np.int32(0x3F3504F3)
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
        a *= a
        a *= a
        power = a
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


@register_jitable(fastmath={"contract"})
def log_single(x):
    """The logarithm of a float32 from 2**-126 up; of what is less, about that one's."""
    bits = view(np.float32(max(x, np.float32(1.1754944e-38))), np.int32)
    k = np.int32(np.int32(bits - HALF_ROOT_SINGLE) >> 23)
    f = view(np.int32(bits - np.int32(k << 23)), np.float32) - np.float32(1)
    z = f * f
    r = np.float32(7.0376836292e-2)
    r = r * f + np.float32(-1.1514610310e-1)
    r = r * f + np.float32(1.1676998740e-1)
    r = r * f + np.float32(-1.2420140846e-1)
    r = r * f + np.float32(1.4249322787e-1)
    r = r * f + np.float32(-1.6668057665e-1)
    r = r * f + np.float32(2.0000714765e-1)
    r = r * f + np.float32(-2.4999993993e-1)
    r = r * f + np.float32(3.3333331174e-1)
    whole = np.float32(k)
    r = r * f * z - whole * np.float32(2.12194440e-4) - np.float32(0.5) * z
    return f + r + whole * np.float32(0.693359375)


@register_jitable(fastmath={"contract"})
def fade_single(x):
    """The exponential of a float32 from -43 to 0; of what is less, that of -43: products of a few
    are no subnormal numbers, which take long."""
    x = max(x, np.float32(-43))
    whole = np.float32(x * np.float32(1.44269504)) + BITS_SINGLE
    k = np.float32(whole) - BITS_SINGLE
    r = x - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)
    q = np.float32(1.9875691500e-4)
    q = q * r + np.float32(1.3981999507e-3)
    q = q * r + np.float32(8.3334519073e-3)
    q = q * r + np.float32(4.1665795894e-2)
    q = q * r + np.float32(1.6666665459e-1)
    q = q * r + np.float32(5.0000001201e-1)
    q = q * r * r + r + np.float32(1)
    return view(np.int32(view(np.float32(q), np.int32) + np.int32(view(np.float32(whole), np.int32) << 23)), np.float32)


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


@register_jitable(fastmath={"contract"})
def grown_float32(x):
    """The exponential of a small number."""
    r = np.float32(1 / 120)
    r = r * x + np.float32(1.0 / 24.0)
    r = r * x + np.float32(1.0 / 6.0)
    r = r * x + np.float32(1.0 / 2.0)
    r = r * x + np.float32(1.0)
    r = r * x + np.float32(1.0)
    return r


@register_jitable(fastmath=FINITE, error_model="numpy")
def shift_float32(row, cs, t, unit):
    """The c of some elements."""
    for j in range(min(row.size, cs.size)):
        a = abs(np.float32(row[j])) * unit
        cs[j] = t + np.float32(P - 2.0) * log_single(a)


@register_jitable(fastmath=FINITE, error_model="numpy")
def start_float32(cs, zs):
    """A first z: a step from where the larger term alone is 1."""
    Q, BEND = np.float32(P - 1.0), np.float32((P - 2.0) ** 2)
    for j in range(min(cs.size, zs.size)):
        c = cs[j]
        highest = min(np.float32(0), -c * np.float32(STEEPEST))
        e = fade_single(min(c, highest))
        least = c < np.float32(0)
        one, other = np.float32(1) if least else e, e if least else np.float32(1)
        half = e / (e + np.float32(2))
        square = half * half
        height = np.float32(2) * half * (np.float32(1) + square * (np.float32(1 / 3) + square * np.float32(0.2)))
        slope = one + Q * other
        z = highest - np.float32(2) * height * slope * (np.float32(1) + e) / (np.float32(2) * slope * slope - height * BEND * e)
        zs[j] = min(z, highest)


@register_jitable(fastmath=FINITE, error_model="numpy")
def find_float32(ones, others, falls):
    """The terms, of c and z in the places of others and falls; their next steps are put there."""
    Q, BEND = np.float32(P - 1.0), np.float32((P - 2.0) ** 2)
    for j in range(min(ones.size, min(others.size, falls.size))):
        z = falls[j]
        one, other = fade_single(z), fade_single(others[j] + Q * z)
        rest = one + other - np.float32(1)
        height = rest - rest * rest * (np.float32(0.5) - rest * np.float32(1 / 3))  # the sum's logarithm
        slope = one + Q * other
        step = np.float32(-2) * height * slope * (one + other) / (np.float32(2) * slope * slope - height * BEND * one * other)
        ones[j], others[j], falls[j] = one, other, step


@register_jitable(fastmath=FINITE, error_model="numpy")
def follow_float32(ones, others, falls, moved):
    """The same, of terms that are known, where log t has moved."""
    Q, BEND = np.float32(P - 1.0), np.float32((P - 2.0) ** 2)
    for j in range(min(ones.size, min(others.size, falls.size))):
        z = falls[j] * moved
        one = ones[j] * grown_float32(z)
        other = others[j] * grown_float32(moved + Q * z)
        rest = one + other - np.float32(1)
        height = rest - rest * rest * (np.float32(0.5) - rest * np.float32(1 / 3))  # the sum's logarithm
        slope = one + Q * other
        step = np.float32(-2) * height * slope * (one + other) / (np.float32(2) * slope * slope - height * BEND * one * other)
        ones[j], others[j], falls[j] = one, other, step


@register_jitable(fastmath=FINITE, error_model="numpy")
def sums_float32(row, ones, others, falls, unit):
    """Take those steps. Returns the sum of the powers of some values, times t; how it falls with
    log t, by P; and of the fourth powers of how wrong the equations were."""
    Q = np.float32(P - 1.0)
    total, slope, rests = np.float32(0), np.float32(0), np.float32(0)
    for j in range(min(min(row.size, ones.size), min(others.size, falls.size))):
        a = abs(np.float32(row[j])) * unit
        one, other, step = ones[j], others[j], falls[j]
        rest = one + other - np.float32(1)
        rest *= rest
        one *= grown_float32(step)
        other *= grown_float32(Q * step)
        fall = -other / (one + Q * other)  # dz / dc
        ones[j], others[j], falls[j] = one, other, fall
        power = a * a * one * other
        total += power
        slope += power * fall
        rests += rest * rest
    return np.float64(total), np.float64(slope), np.float64(rests)


@register_jitable(error_model="numpy")
def sweep_float32(row, ones, others, falls, anew, t, moved, unit):
    """Those sums of a group, whose terms are found anew or followed; of the last one the root, which
    is about how wrong the worst equation was."""
    total, slope, rests = 0.0, 0.0, 0.0
    for start in range(0, row.size, PART):
        size = min(PART, row.size - start)
        part, part_ones = span(row, start, size), span(ones, start, size)
        part_others, part_falls = span(others, start, size), span(falls, start, size)
        if anew:
            shift_float32(part, part_others, t, unit)
            start_float32(part_others, part_falls)
            find_float32(part_ones, part_others, part_falls)
        else:
            follow_float32(part_ones, part_others, part_falls, moved)
        part_total, part_slope, part_rests = sums_float32(part, part_ones, part_others, part_falls, unit)
        total += part_total
        slope += part_slope
        rests += part_rests
    return total, slope, math.sqrt(math.sqrt(rests))


@register_jitable(fastmath=FINITE, error_model="numpy")
def apply_float32(row, target, spare, moved):
    """Write a group's projection, whose log t is `moved` from where the terms were found."""
    n, cells = row.size, view(spare, np.float32)
    ones, falls = span(cells, 0, n), span(cells, 2 * n, n)
    for j in range(min(row.size, min(ones.size, falls.size))):
        z = falls[j] * moved
        part = min(ones[j] * (np.float32(1) + z * (np.float32(1) + np.float32(0.5) * z)), np.float32(1))
        target[j] = row[j] * part


@register_jitable(error_model="numpy")
def search_float32(row, spare, t, unit, v, ratio):
    """The log t of a group with value v in those units, from a guess; how far that is from where its
    terms were found; how the length falls there; and whether it is right."""
    n, cells = row.size, view(spare, np.float32)
    ones, others, falls = span(cells, 0, n), span(cells, n, n), span(cells, 2 * n, n)
    low, high, moved, wrong = -1e300, 1e300, 0.0, 1.0
    for turn in range(TRIES):
        anew = wrong > SHARP or abs(moved) > LEAP
        t = np.float64(np.float32(t)) if anew else t
        total, slope, wrong = sweep_float32(row, ones, others, falls, anew, np.float32(t), np.float32(moved), np.float32(unit))
        if anew and wrong > SHARP:
            break
        if not 1e-25 < total < 1e30:
            break
        length = (math.log(total) - t) / P - math.log(v)
        moved = aim(length, ratio, slope / total)
        if wrong <= 0.0028470338722008043:  # the steps that were taken leave nothing to see
            if abs(moved) <= 0.0004:  # nor would another one for t
                return t + moved, moved, slope / total, True
            low, high = (t, high) if length > ratio else (low, t)
            if not low < t + moved < high and high - low < 1e300:
                moved = low + (high - low) / 2 - t
        t += moved
    return t, 0.0, -1.0, False


@register_jitable(fastmath={"contract"})
def grown_float64(x):
    """The exponential of a small number."""
    r = np.float64(1 / 40320)
    r = r * x + 1.0 / 5040.0
    r = r * x + 1.0 / 720.0
    r = r * x + 1.0 / 120.0
    r = r * x + 1.0 / 24.0
    r = r * x + 1.0 / 6.0
    r = r * x + 1.0 / 2.0
    r = r * x + 1.0
    r = r * x + 1.0
    return r


@register_jitable(fastmath=FINITE, error_model="numpy")
def shift_float64(row, cs, t, unit):
    """The c of some elements."""
    for j in range(min(row.size, cs.size)):
        a = abs(np.float64(row[j])) * unit
        cs[j] = t + np.float64(P - 2.0) * log(a)


@register_jitable(fastmath=FINITE, error_model="numpy")
def start_float64(cs, zs):
    """A first z: a step from where the larger term alone is 1."""
    Q, BEND = np.float64(P - 1.0), np.float64((P - 2.0) ** 2)
    for j in range(min(cs.size, zs.size)):
        c = cs[j]
        highest = min(np.float64(0), -c * np.float64(STEEPEST))
        e = exp(min(c, highest))
        least = c < np.float64(0)
        one, other = np.float64(1) if least else e, e if least else np.float64(1)
        half = e / (e + np.float64(2))
        square = half * half
        height = np.float64(2) * half * (np.float64(1) + square * (np.float64(1 / 3) + square * np.float64(0.2)))
        slope = one + Q * other
        z = highest - np.float64(2) * height * slope * (np.float64(1) + e) / (np.float64(2) * slope * slope - height * BEND * e)
        zs[j] = min(z, highest)


@register_jitable(fastmath=FINITE, error_model="numpy")
def find_float64(ones, others, falls):
    """The terms, of c and z in the places of others and falls; their next steps are put there."""
    Q, BEND = np.float64(P - 1.0), np.float64((P - 2.0) ** 2)
    for j in range(min(ones.size, min(others.size, falls.size))):
        z = falls[j]
        one, other = exp(z), exp(others[j] + Q * z)
        rest = one + other - np.float64(1)
        height = rest - rest * rest * (np.float64(0.5) - rest * np.float64(1 / 3))  # the sum's logarithm
        slope = one + Q * other
        step = np.float64(-2) * height * slope * (one + other) / (np.float64(2) * slope * slope - height * BEND * one * other)
        ones[j], others[j], falls[j] = one, other, step


@register_jitable(fastmath=FINITE, error_model="numpy")
def follow_float64(ones, others, falls, moved):
    """The same, of terms that are known, where log t has moved."""
    Q, BEND = np.float64(P - 1.0), np.float64((P - 2.0) ** 2)
    for j in range(min(ones.size, min(others.size, falls.size))):
        z = falls[j] * moved
        one = ones[j] * grown_float64(z)
        other = others[j] * grown_float64(moved + Q * z)
        rest = one + other - np.float64(1)
        height = rest - rest * rest * (np.float64(0.5) - rest * np.float64(1 / 3))  # the sum's logarithm
        slope = one + Q * other
        step = np.float64(-2) * height * slope * (one + other) / (np.float64(2) * slope * slope - height * BEND * one * other)
        ones[j], others[j], falls[j] = one, other, step


@register_jitable(fastmath=FINITE, error_model="numpy")
def sums_float64(row, ones, others, falls, unit):
    """Take those steps. Returns the sum of the powers of some values, times t; how it falls with
    log t, by P; and of the fourth powers of how wrong the equations were."""
    Q = np.float64(P - 1.0)
    total, slope, rests = np.float64(0), np.float64(0), np.float64(0)
    for j in range(min(min(row.size, ones.size), min(others.size, falls.size))):
        a = abs(np.float64(row[j])) * unit
        one, other, step = ones[j], others[j], falls[j]
        rest = one + other - np.float64(1)
        rest *= rest
        one *= grown_float64(step)
        other *= grown_float64(Q * step)
        fall = -other / (one + Q * other)  # dz / dc
        ones[j], others[j], falls[j] = one, other, fall
        power = a * a * one * other
        total += power
        slope += power * fall
        rests += rest * rest
    return np.float64(total), np.float64(slope), np.float64(rests)


@register_jitable(error_model="numpy")
def sweep_float64(row, ones, others, falls, anew, t, moved, unit):
    """Those sums of a group, whose terms are found anew or followed; of the last one the root, which
    is about how wrong the worst equation was."""
    total, slope, rests = 0.0, 0.0, 0.0
    for start in range(0, row.size, PART):
        size = min(PART, row.size - start)
        part, part_ones = span(row, start, size), span(ones, start, size)
        part_others, part_falls = span(others, start, size), span(falls, start, size)
        if anew:
            shift_float64(part, part_others, t, unit)
            start_float64(part_others, part_falls)
            find_float64(part_ones, part_others, part_falls)
        else:
            follow_float64(part_ones, part_others, part_falls, moved)
        part_total, part_slope, part_rests = sums_float64(part, part_ones, part_others, part_falls, unit)
        total += part_total
        slope += part_slope
        rests += part_rests
    return total, slope, math.sqrt(math.sqrt(rests))


@register_jitable(fastmath=FINITE, error_model="numpy")
def apply_float64(row, target, spare, moved):
    """Write a group's projection, whose log t is `moved` from where the terms were found."""
    n, cells = row.size, spare
    ones, falls = span(cells, 0, n), span(cells, 2 * n, n)
    for j in range(min(row.size, min(ones.size, falls.size))):
        z = falls[j] * moved
        part = min(ones[j] * (np.float64(1) + z * (np.float64(1) + np.float64(0.5) * z)), np.float64(1))
        target[j] = row[j] * part


@register_jitable(error_model="numpy")
def search_float64(row, spare, t, unit, v, ratio):
    """The log t of a group with value v in those units, from a guess; how far that is from where its
    terms were found; how the length falls there; and whether it is right."""
    n, cells = row.size, spare
    ones, others, falls = span(cells, 0, n), span(cells, n, n), span(cells, 2 * n, n)
    low, high, moved, wrong = -1e300, 1e300, 0.0, 1.0
    for turn in range(TRIES):
        anew = wrong > SHARP or abs(moved) > LEAP
        total, slope, wrong = sweep_float64(row, ones, others, falls, anew, np.float64(t), np.float64(moved), np.float64(unit))
        if anew and wrong > SHARP:
            break
        if not 1e-200 < total < 1e30:
            break
        length = (math.log(total) - t) / P - math.log(v)
        moved = aim(length, ratio, slope / total)
        if wrong <= 1.9740230337485722e-05:  # the steps that were taken leave nothing to see
            # Nor would another one for t; or the length is what it can be told from, in float64.
            if abs(moved) <= 2e-07 or abs(length - ratio) <= 4e-16 * (1.0 + abs(t)):
                return t + moved, moved, slope / total, True
            low, high = (t, high) if length > ratio else (low, t)
            if not low < t + moved < high and high - low < 1e300:
                moved = low + (high - low) / 2 - t
        t += moved
    return t, 0.0, -1.0, False


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
    high = np.int32(0)
    for j in range(row.size):
        high = np.int32(max(high, view(np.float32(abs(row[j])), np.int32)))
    bits = bits_of(view(np.int32(high), np.float32))
    scale = math.ldexp(1.0, min(1000, max(-1000, -math.frexp(view(np.int64(bits), np.float64))[1])))
    ratio = math.log(u / v) if u / v > 0 else math.log(u) - math.log(v)
    value = v * scale
    # What log t would be for one value, or many equal ones, of length 1.
    height = math.log(-math.expm1(ratio)) - (P - 1.0) * ratio if ratio < 0 else -40.0
    if -20.0 < ratio < 0.0 and 1e-30 < value < 1e30 and 1e-30 < scale < 1e30:
        base = height + (2.0 - P) * math.log(value)
        log_t, found = base + guess, False
        if -9.0 < ratio < -0.02:
            log_t, moved, fall, found = search_float32(row, spare, log_t, scale, value, ratio)
            if found:
                apply_float32(row, target, spare, np.float32(moved))
        if not found:
            log_t, moved, fall, found = search_float64(row, spare, log_t, scale, value, ratio)
            if found:
                apply_float64(row, target, spare, moved)
        if found:
            # How the guess falls with u / v.
            part = u / v
            return log_t - base, -(1.0 / fall + part / (1.0 - part) + P - 1.0) / part
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
