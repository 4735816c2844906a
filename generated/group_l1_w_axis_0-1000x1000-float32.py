"""l1(w): groups of float32 arrays.

    groups lie side by side in memory: 256 are worked on together, where they lie

A group's elements are read as float64: for its value, and in a second call to project it.
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
LANES = 256  # groups side by side that are worked on together
FEW = 1e-6  # of a group's value: a radius below that takes care
MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)  # all of a float's bits but its sign


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
    return np.float64(value).view(np.int64) & np.int64(0x7FFFFFFFFFFFFFFF)


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
def solve(row, target, w, v, u, guess):
    """Project a group with value v on radius u < v; the threshold t, by v, and how t falls with u.

    Newton's method for sum w max(a - w t, 0) = u, from a guess of t / v. That sum is convex in t:
    a step from the right of the solution lands on its left, steps from the left climb to it.
    """
    if u <= 0:
        for j in range(row.size):
            target[j] = math.copysign(abs(np.float64(row[j])) if w[j] == 0 else 0.0, row[j])
        return 0.0, 1.0
    bits = np.int64(0)
    for j in range(w.size):
        bits = max(bits, np.float64(w[j]).view(np.int64) & MAGNITUDE)
    unit = unit_of(np.float64(np.int64(bits).view(np.float64)))
    scale = math.ldexp(1.0, unit)
    goal, safe = u * scale, 0.0
    t = max(guess * v / scale, safe) if 1e-100 < scale < 1e100 else safe
    before = 0.0
    while True:
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
            t *= 1.0 + 4e-16
            continue
        if not squares > 0 or squares == before or (before > 0 and not excess > goal):
            break
        before = squares
        t = max(t + (excess - goal) / squares, safe)
    factor = 1.0
    if u < FEW * v:  # what is left of a value is little more than its rounding: it is put right
        total = 0.0
        for j in range(row.size):
            a = abs(np.float64(row[j]))
            left = max(a - np.float64(w[j]) * scale * t, 0.0)
            total += np.float64(w[j]) * scale * left if left > 0 else 0.0
        factor = goal / total if total > 0 else 1.0
    for j in range(row.size):
        a = abs(np.float64(row[j]))
        one = factor if w[j] > 0 else 1.0
        target[j] = math.copysign(min(a, one * max(a - np.float64(w[j]) * scale * t, 0.0)), row[j])
    if not 1e-100 < scale < 1e100 or not squares > 0:
        return 0.0, 1.0
    return t / v * scale, scale * scale / squares


@register_jitable
def take(y, w, begin, end, base_y, base_w, width, index, axes, c, line, own):
    """Copy one group of a tile; how many elements it has."""
    j = 0
    y_offsets = index[axes[31] : axes[31 + 1]]
    y_step = axes[21]
    w_offsets = index[axes[35] : axes[35 + 1]]
    w_step = axes[23]
    run = axes[20]
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_w = base_w + w_offsets[o]
        for i in range(run):
            line[j] = np.float64(y[at_y + c])
            own[j] = w[at_w + c]
            j += 1
            at_y += y_step
            at_w += w_step
    return j


@register_jitable
def put(x, begin, end, base_x, c, index, axes, line):
    """Write one group of a tile."""
    j = 0
    x_offsets = index[axes[33] : axes[33 + 1]]
    x_step = axes[22]
    run = axes[20]
    for o in range(begin, end):
        at_x = base_x + x_offsets[o]
        for i in range(run):
            x[at_x + c] = line[j]
            j += 1
            at_x += x_step


@register_jitable(fastmath=FAST)
def measure(y, w, begin, end, base_y, base_w, width, index, axes, sums):
    """The sums of the groups of a tile."""
    sums[:] = 0.0
    y_offsets = index[axes[31] : axes[31 + 1]]
    y_step = axes[21]
    w_offsets = index[axes[35] : axes[35 + 1]]
    w_step = axes[23]
    run = axes[20]
    whole = run - run % 4
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_w = base_w + w_offsets[o]
        for i in range(0, whole, 4):
            row_0 = y[at_y : at_y + width]
            row_1 = y[at_y + y_step : at_y + y_step + width]
            row_2 = y[at_y + 2 * y_step : at_y + 2 * y_step + width]
            row_3 = y[at_y + 3 * y_step : at_y + 3 * y_step + width]
            own_0 = w[at_w : at_w + width]
            own_1 = w[at_w + w_step : at_w + w_step + width]
            own_2 = w[at_w + 2 * w_step : at_w + 2 * w_step + width]
            own_3 = w[at_w + 3 * w_step : at_w + 3 * w_step + width]
            for c in range(width):
                sum = sums[c]
                a = abs(np.float64(row_0[c]))
                w_c = np.float64(own_0[c])
                sum += w_c * a
                a = abs(np.float64(row_1[c]))
                w_c = np.float64(own_1[c])
                sum += w_c * a
                a = abs(np.float64(row_2[c]))
                w_c = np.float64(own_2[c])
                sum += w_c * a
                a = abs(np.float64(row_3[c]))
                w_c = np.float64(own_3[c])
                sum += w_c * a
                sums[c] = sum
            at_y += 4 * y_step
            at_w += 4 * w_step
        for i in range(whole, run):
            row_0 = y[at_y : at_y + width]
            own_0 = w[at_w : at_w + width]
            for c in range(width):
                sum = sums[c]
                a = abs(np.float64(row_0[c]))
                w_c = np.float64(own_0[c])
                sum += w_c * a
                sums[c] = sum
            at_y += y_step
            at_w += w_step


@register_jitable(fastmath=FAST)
def exceed(y, w, begin, end, base_y, base_w, width, index, axes, level, excesss, squares):
    """How far the groups' values exceed their thresholds, and the squares of those weights."""
    excesss[:] = 0.0
    squares[:] = 0.0
    y_offsets = index[axes[31] : axes[31 + 1]]
    y_step = axes[21]
    w_offsets = index[axes[35] : axes[35 + 1]]
    w_step = axes[23]
    run = axes[20]
    whole = run - run % 4
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_w = base_w + w_offsets[o]
        for i in range(0, whole, 4):
            row_0 = y[at_y : at_y + width]
            row_1 = y[at_y + y_step : at_y + y_step + width]
            row_2 = y[at_y + 2 * y_step : at_y + 2 * y_step + width]
            row_3 = y[at_y + 3 * y_step : at_y + 3 * y_step + width]
            own_0 = w[at_w : at_w + width]
            own_1 = w[at_w + w_step : at_w + w_step + width]
            own_2 = w[at_w + 2 * w_step : at_w + 2 * w_step + width]
            own_3 = w[at_w + 3 * w_step : at_w + 3 * w_step + width]
            for c in range(width):
                t = level[c]
                excess = excesss[c]
                square = squares[c]
                a = abs(np.float64(row_0[c]))
                w_c = np.float64(own_0[c])
                above = a - w_c * t
                excess += w_c * above if above > 0 else 0.0
                square += w_c * w_c if above > 0 else 0.0
                a = abs(np.float64(row_1[c]))
                w_c = np.float64(own_1[c])
                above = a - w_c * t
                excess += w_c * above if above > 0 else 0.0
                square += w_c * w_c if above > 0 else 0.0
                a = abs(np.float64(row_2[c]))
                w_c = np.float64(own_2[c])
                above = a - w_c * t
                excess += w_c * above if above > 0 else 0.0
                square += w_c * w_c if above > 0 else 0.0
                a = abs(np.float64(row_3[c]))
                w_c = np.float64(own_3[c])
                above = a - w_c * t
                excess += w_c * above if above > 0 else 0.0
                square += w_c * w_c if above > 0 else 0.0
                excesss[c] = excess
                squares[c] = square
            at_y += 4 * y_step
            at_w += 4 * w_step
        for i in range(whole, run):
            row_0 = y[at_y : at_y + width]
            own_0 = w[at_w : at_w + width]
            for c in range(width):
                t = level[c]
                excess = excesss[c]
                square = squares[c]
                a = abs(np.float64(row_0[c]))
                w_c = np.float64(own_0[c])
                above = a - w_c * t
                excess += w_c * above if above > 0 else 0.0
                square += w_c * w_c if above > 0 else 0.0
                excesss[c] = excess
                squares[c] = square
            at_y += y_step
            at_w += w_step


@register_jitable(fastmath=FAST, error_model="numpy")
def write(y, x, w, begin, end, base_y, base_x, base_w, width, index, axes, level):
    """The projection of the groups of a tile, whose levels are found."""
    y_offsets = index[axes[31] : axes[31 + 1]]
    y_step = axes[21]
    x_offsets = index[axes[33] : axes[33 + 1]]
    x_step = axes[22]
    w_offsets = index[axes[35] : axes[35 + 1]]
    w_step = axes[23]
    run = axes[20]
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_x = base_x + x_offsets[o]
        at_w = base_w + w_offsets[o]
        for i in range(run):
            row_0 = y[at_y : at_y + width]
            own_0 = w[at_w : at_w + width]
            target = x[at_x : at_x + width]
            for c in range(width):
                t = level[c]
                a = abs(np.float64(row_0[c]))
                w_c = np.float64(own_0[c])
                target[c] = math.copysign(min(a, max(a - w_c * t, 0.0)), row_0[c])
            at_y += y_step
            at_x += x_step
            at_w += w_step


@register_jitable(fastmath=FAST, error_model="numpy")
def search(y, w, begin, end, base_y, base_w, width, index, axes, v, u, level, excesss, squares, before, found, share, fall):
    """The thresholds of the groups of a tile, as in `solve`; how many need that, and a level of 0.

    `found`, `share` and `fall` are of the last tile's groups, and become those of this one's.
    """
    searching, alone = 0, 0
    for c in range(width):
        before[c] = -1.0  # nothing to be searched for
        level[c] = 0.0 if u[c] >= v[c] else np.inf
        if 0 < u[c] < FEW * v[c]:
            level[c], before[c] = 0.0, -2.0
            alone += 1
        elif 0 < u[c] < v[c]:
            before[c] = 0.0
            level[c] = max(v[c] * (found[c] - (u[c] / v[c] - share[c]) * fall[c]), 0.0)
            searching += 1
    while searching > 0:
        exceed(y, w, begin, end, base_y, base_w, width, index, axes, level, excesss, squares)
        searching = 0
        for c in range(width):
            if before[c] < 0:
                continue
            square = squares[c]
            if square == 0 and before[c] == 0 and level[c] > 0:
                level[c] = 0.0  # the guess was right of every value
                searching += 1
            elif square == before[c] or (before[c] > 0 and not excesss[c] > u[c]):
                found[c], share[c], fall[c] = level[c] / v[c], u[c] / v[c], 1.0 / max(square, before[c])
                before[c] = -1.0
            elif not 1e-250 < square < 1e250:
                level[c], before[c] = 0.0, -2.0
                alone += 1
            else:
                before[c] = square
                level[c] = max(level[c] + (excesss[c] - u[c]) / square, 0.0)
                searching += 1
    return alone


@cfunc(
    types.int64(
        types.CPointer(types.float32),
        types.CPointer(types.float32),
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
    index = carray(geometry, index_size)
    y = carray(y_at, y_size)
    x = carray(x_at, x_size)
    memory = carray(work, memory_size)
    w = carray(pointer(read(desk, 1)), w_size)
    values = memory[:groups]
    radii = memory[groups : 2 * groups]
    at = 2 * groups + seat * scratch_size
    sums_lanes = memory[at + 0 * LANES : at + 1 * LANES]
    level_lanes = memory[at + 1 * LANES : at + 2 * LANES]
    v_lanes = memory[at + 2 * LANES : at + 3 * LANES]
    u_lanes = memory[at + 3 * LANES : at + 4 * LANES]
    excesss_lanes = memory[at + 4 * LANES : at + 5 * LANES]
    squares_lanes = memory[at + 5 * LANES : at + 6 * LANES]
    before_lanes = memory[at + 6 * LANES : at + 7 * LANES]
    found_lanes = memory[at + 7 * LANES : at + 8 * LANES]
    share_lanes = memory[at + 8 * LANES : at + 9 * LANES]
    fall_lanes = memory[at + 9 * LANES : at + 10 * LANES]
    free = at + 10 * LANES
    line = memory[free : free + pitch]
    own = memory[free + pitch : free + 2 * pitch]
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        found_lanes[:], share_lanes[:], fall_lanes[:] = 0.0, 0.0, 1.0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            # A tile: groups side by side.
            tile, m = item // labels, item % labels
            outer, past = tile // tiles, tile % tiles * LANES
            first, width = outer * extent + past, min(LANES, extent - past)
            base_y = index[y_bases_at + outer] + past * y_lane
            base_x = index[x_bases_at + outer] + past * x_lane
            base_w = index[w_bases_at + outer] + past * w_lane
            begin, end = index[starts_at + m], index[starts_at + m + 1]
            sums = sums_lanes[:width]
            level = level_lanes[:width]
            v = v_lanes[:width]
            u = u_lanes[:width]
            excesss = excesss_lanes[:width]
            squares = squares_lanes[:width]
            before = before_lanes[:width]
            found = found_lanes[:width]
            share = share_lanes[:width]
            fall = fall_lanes[:width]
            if not projecting:
                measure(y, w, begin, end, base_y, base_w, width, index, axes, sums)
                for c in range(width):
                    value = sums[c]
                    values[(first + c) * labels + m], highest = value, max(highest, bits_of(value))
                continue
            for c in range(width):
                group = (first + c) * labels + m
                v[c], u[c] = values[group], radii[group * radius_step]
            alone = search(y, w, begin, end, base_y, base_w, width, index, axes, v, u, level, excesss, squares, before, found, share, fall)
            write(y, x, w, begin, end, base_y, base_x, base_w, width, index, axes, level)
            for c in range(width if alone > 0 else 0):
                if before[c] == -2:
                    n = take(y, w, begin, end, base_y, base_w, width, index, axes, c, line, own)
                    solve(line[:n], line[:n], own[:n], v[c], u[c], 0.0)
                    put(x, begin, end, base_x, c, index, axes, line)
