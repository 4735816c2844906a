"""lp(p=1.5): groups of float64 arrays.

    a group is contiguous in memory, and is worked on where it lies

A group's elements are read for its value, and in a second call to project it.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from numba import carray, cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
P = 1.5
TURNS = 200  # of each search, at most; some ten are usual
NEAR = 4.0e-07  # a step of Newton's method for z after which its error is beyond float64
LAST = 1.5e-07  # the same, for log t
BITS = 6755399441055744.0  # 1.5 * 2**52: with it added, a float's last bits are an integer's
MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)  # all of a float's bits but its sign
HALF_ROOT = np.int64(0x3FE6A09E667F3BCD)  # the bits of sqrt(1/2)


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
    return np.float64(value).view(np.int64) & np.int64(0x7FFFFFFFFFFFFFFF)


@register_jitable(fastmath=FAST)
def value_of(row):
    """The length of a group in lp; NaN if one is not finite."""
    bits = np.int64(0)  # those of NaN are above those of infinity
    for j in range(row.size):
        bits = max(bits, np.float64(abs(np.float64(row[j]))).view(np.int64) & MAGNITUDE)
    top = np.int64(bits).view(np.float64)
    if not 0 < top < np.inf:
        return top
    return top * powers(row, top) ** (1.0 / P)


@register_jitable(fastmath=FINITE, error_model="numpy")
def powers(row, top):
    """The sum of the powers of a group's finite values, the largest of which is top, by that one's."""
    total = 0.0
    for j in range(row.size):
        total += exp(P * log(abs(np.float64(row[j])) / top))
    return total


@register_jitable(fastmath={"contract"})
def log(x):
    """The logarithm of 0 < x <= 1, and a number below all of them for 0; without a branch."""
    bits = np.float64(x * 1.2676506002282294e30).view(np.int64)  # times 2**100: never subnormal
    k = (bits - HALF_ROOT) >> 52
    f = np.int64(bits - (k << 52)).view(np.float64) - 1.0
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
    return np.int64(np.float64(q).view(np.int64) + (whole.view(np.int64) << 52)).view(np.float64)


@register_jitable(fastmath=FINITE, error_model="numpy")
def descend(depths, slopes, shifts, t, moved):
    """For each c = t + shift, the z for which exp(z) + exp(c + (P - 1) z) is 1; and dz / dc.

    The sum is convex and increases with z: Newton's method comes down to z from above. It starts
    where the slopes lead from the last z, c having moved; a start below z only leads above it.
    """
    for j in range(depths.size):
        depths[j] += slopes[j] * moved
    for turn in range(TURNS):
        far = 0.0  # how many are
        for j in range(min(depths.size, slopes.size, shifts.size)):
            c = t + shifts[j]
            highest = min(0.0, -c / (P - 1.0))
            z = min(depths[j], highest)
            one, other = exp(z), exp(c + (P - 1.0) * z)
            steep = one + (P - 1.0) * other
            nearer = min(z - (one + other - 1.0) / steep, highest)
            far += 1.0 if abs(nearer - z) + 1e-15 * z > NEAR else 0.0
            depths[j] = nearer
            slopes[j] = -other / steep
        if far == 0:
            break


@register_jitable(fastmath=FINITE, error_model="numpy")
def solve(row, target, spare, v, u):
    """Project a group with value v on radius u < v.

    In logarithms: x = a exp(z), and z depends only on c = log t + P log w + (P - 2) log a. Newton's
    method, with a bracket, for the log t at which x is as long as u, in logarithms too.
    """
    if u <= 0:
        for j in range(row.size):
            target[j] = math.copysign(0.0, row[j])
        return
    # Values from 0 to 1, by a power of two.
    top = 0.0
    for j in range(row.size):
        top = max(top, abs(np.float64(row[j])))
    scale = math.ldexp(1.0, min(1000, max(-1000, -math.frexp(top)[1])))
    n = row.size
    # By element: log (w a)^P, and c - log t.
    lengths, shifts, depths, slopes = spare[:n], spare[n : 2 * n], spare[2 * n : 3 * n], spare[3 * n :]
    slopes = slopes[:n]
    for j in range(min(n, lengths.size, shifts.size)):
        depths[j] = slopes[j] = 0.0
        a = abs(np.float64(row[j])) * scale
        value = log(a)
        shifts[j] = (P - 2.0) * value if a > 0 else -1e300
        lengths[j] = P * value if a > 0 else -1e300
    longest, first = -1e300, 0.0
    for j in range(n):
        if lengths[j] > longest:
            longest, first = lengths[j], shifts[j]
    goal = P * (math.log(u) + math.log(scale))
    # What t would be for one value, or many equal ones.
    ratio = math.log(u / v) if u / v > 0 else math.log(u) - math.log(v)
    t = math.log(-math.expm1(ratio)) - (P - 1.0) * ratio - first if ratio < 0 else -40.0 - first
    low, high = -1e300, 1e300
    moved = 0.0
    for turn in range(TURNS):
        descend(depths, slopes, shifts, t, moved)
        top = -1e300
        for j in range(n):
            length = lengths[j] + P * depths[j]
            top = length if length > top else top
        total, slope = 0.0, 0.0
        for j in range(n):
            part = exp(lengths[j] + P * depths[j] - top)
            total += part
            slope += part * slopes[j]
        error = math.log(total) + top - goal
        if error > 0:
            low = t
        else:
            high = t
        moved = -error * total / (P * slope) if slope < 0 else math.copysign(1.0 + abs(t), error)
        if abs(moved) <= LAST + 4e-16 * abs(t):
            break
        if not low < t + moved < high:
            moved = low + (high - low) / 2 - t if high - low < 1e300 else moved
        if t + moved == t:
            break
        t += moved
    for j in range(n):
        target[j] = math.copysign(abs(np.float64(row[j])) * min(1.0, exp(depths[j] + slopes[j] * moved)), row[j])


@cfunc(
    types.int64(
        types.CPointer(types.float64),
        types.CPointer(types.float64),
        types.CPointer(types.int64),
        types.CPointer(types.float64),
        types.CPointer(types.int64),
    ),
    cache=True,
)
def project(y_at, x_at, geometry, work, desk):
    """Take part in one call; any number of threads may, with the same arguments.

    `geometry` holds extents and offsets, `work` the groups' values, their radii, and room to work;
    a first radius below 0 asks for the values alone. `desk` holds zeros; each thread leaves the bits
    of the highest value that it found in the cell after that of its share. Returns 0.
    """
    axes = carray(geometry, 37)
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
    index = carray(geometry, index_size)
    y = carray(y_at, y_size)
    x = carray(x_at, x_size)
    memory = carray(work, memory_size)
    values = memory[:groups]
    radii = memory[groups : 2 * groups]
    spare = memory[2 * groups + (seat + 1) * scratch_size - spare_size : 2 * groups + (seat + 1) * scratch_size]
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            first = item
            outer, past = first // extent, first % extent
            at_y = index[y_bases_at + outer] + past * y_lane
            at_x = index[x_bases_at + outer] + past * x_lane
            row = y[at_y : at_y + pitch]
            target = x[at_x : at_x + pitch]
            if not projecting:
                value = value_of(row)
                values[item], highest = value, max(highest, bits_of(value))
            elif values[item] > radii[item * radius_step]:
                v, u = values[item], radii[item * radius_step]
                solve(row, target, spare, v, u)
            else:
                for j in range(row.size):
                    target[j] = row[j]
