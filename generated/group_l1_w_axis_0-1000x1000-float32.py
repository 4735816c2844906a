"""l1(w): groups of float32 arrays.

    groups lie side by side in memory: 256 are measured together, where they lie, and 16 turned into rows

A group's elements are read for its value, and in a second call to project it.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
LANES = 256  # groups side by side that are worked on together
STRIP = 16  # of these, how many are turned into rows together
FEW = 1e-6  # of a group's value: a radius below that takes care
TURNS = 20  # of a draft, at most; some four are usual
PART = 512  # elements, whose sums are short enough for float32
LONG = 65536  # elements: of so many some parts say first where to start
NEAR = 2e-7  # a step up, by t, after which the error is beyond float32
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
def draft(row, w, u, t, skip):
    """The threshold, from a guess, by sums of float32; the squares of the weights above it; and
    whether that is good enough: it is where the sums' errors are small beside both u and t.

    Each part begins `skip` elements after the last. For numbers of ordinary sizes.
    """
    before, times = 0.0, max(skip / PART, 1.0)
    for turn in range(TURNS):
        level = np.float32(min(t, 1e30))
        excess, squares = 0.0, 0.0
        for start in range(0, row.size, skip):
            part, own = row[start : start + PART], w[start : start + PART]
            part_excess, part_squares = np.float32(0), np.float32(0)
            for j in range(part.size):
                b = np.float32(own[j])
                above = np.float32(abs(part[j])) - b * level
                part_excess += b * above if above > 0 else np.float32(0)
                part_squares += b * b if above > 0 else np.float32(0)
            excess += times * np.float64(part_excess)
            squares += times * np.float64(part_squares)
        if not squares > 0:
            if before > 0 or t == 0:
                return 0.0, 0.0, False
            t = 0.0  # the guess was right of every value
            continue
        t = max(np.float64(level) + (excess - u) / squares, 0.0)
        if squares == before or (before > 0 and t <= np.float64(level)):
            return t, squares, 0.125 * t * squares < u < 4.0 * t * squares
        before = squares if 2.0 * t > np.float64(level) else 0.0  # a long step is none to end with
    return t, 0.0, False


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
        bits = max(bits, np.float64(w[j]).view(np.int64) & MAGNITUDE)
    unit = unit_of(np.float64(np.int64(bits).view(np.float64)))
    scale = math.ldexp(1.0, unit)
    goal, safe = u * scale, 0.0
    t = max(guess * v / scale, safe) if 1e-100 < scale < 1e100 else safe
    settled, squares = False, 0.0
    if 1e-15 < scale < 1e15 and 1e-25 < u and v < 1e25:
        t *= scale
        if row.size >= LONG:
            t = draft(row, w, u, t, row.size // 16)[0]
        t, squares, settled = draft(row, w, u, t, PART)
        t, squares = t / scale, squares * scale * scale
    before = 0.0
    while not settled:
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
        last, t = t, max(t + (excess - goal) / squares, safe)
        if last <= t <= last + NEAR * last:
            break
        # A long step from the right is rounded by too much: what follows is as if it were the first.
        before = squares if 2.0 * t > last else 0.0
    if settled:
        level = np.float32(t * scale * (1.0 + 6e-8))  # not below
        for j in range(row.size):
            least = np.float32(w[j]) * level
            row[j] = row[j] - min(max(row[j], -least), least)
        return t / v * scale, scale * scale / squares
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
    """The sums of the groups of a tile."""
    sums[:] = 0.0
    y_offsets = index[axes[31] : axes[32]]
    y_step = axes[21]
    w_offsets = index[axes[35] : axes[36]]
    w_step = axes[23]
    run = axes[20]
    whole = run - run % 8
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_w = base_w + w_offsets[o]
        for i in range(0, whole, 8):
            row_0 = y[at_y : at_y + width]
            row_1 = y[at_y + y_step : at_y + y_step + width]
            row_2 = y[at_y + 2 * y_step : at_y + 2 * y_step + width]
            row_3 = y[at_y + 3 * y_step : at_y + 3 * y_step + width]
            row_4 = y[at_y + 4 * y_step : at_y + 4 * y_step + width]
            row_5 = y[at_y + 5 * y_step : at_y + 5 * y_step + width]
            row_6 = y[at_y + 6 * y_step : at_y + 6 * y_step + width]
            row_7 = y[at_y + 7 * y_step : at_y + 7 * y_step + width]
            own_0 = w[at_w : at_w + width]
            own_1 = w[at_w + w_step : at_w + w_step + width]
            own_2 = w[at_w + 2 * w_step : at_w + 2 * w_step + width]
            own_3 = w[at_w + 3 * w_step : at_w + 3 * w_step + width]
            own_4 = w[at_w + 4 * w_step : at_w + 4 * w_step + width]
            own_5 = w[at_w + 5 * w_step : at_w + 5 * w_step + width]
            own_6 = w[at_w + 6 * w_step : at_w + 6 * w_step + width]
            own_7 = w[at_w + 7 * w_step : at_w + 7 * w_step + width]
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
                a = abs(np.float64(row_4[c]))
                w_c = np.float64(own_4[c])
                sum += w_c * a
                a = abs(np.float64(row_5[c]))
                w_c = np.float64(own_5[c])
                sum += w_c * a
                a = abs(np.float64(row_6[c]))
                w_c = np.float64(own_6[c])
                sum += w_c * a
                a = abs(np.float64(row_7[c]))
                w_c = np.float64(own_7[c])
                sum += w_c * a
                sums[c] = sum
            at_y += 8 * y_step
            at_w += 8 * w_step
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


@intrinsic
def turn_float32(typing_context, source, at, step, target, to, pitch):
    """target[to + pitch * c + r] = source[at + step * r + c] for 8 values c of 8 rows r: shuffles
    within pairs, fours and eights.
    """

    def codegen(context, builder, signature, args):
        source, target = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3)
        )
        word, lane = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(context.get_value_type(types.float32), 8)
        lanes = ir.VectorType(lane, 8)

        def row(array, start, step, r):
            at = builder.add(start, builder.mul(step, word(r)))
            return builder.bitcast(builder.gep(array, [at]), vector.as_pointer())

        parts = [builder.load(row(source, args[1], args[2], r), align=4) for r in range(8)]
        for near in (1, 2, 4):
            masks = [ir.Constant(lanes, [(j & ~near) + high + (8 if j & near else 0) for j in range(8)]) for high in (0, near)]
            pairs = [(parts[i & ~near], parts[i | near], masks[(i & near) > 0]) for i in range(8)]
            parts = [builder.shuffle_vector(*pair) for pair in pairs]
        for c, part in enumerate(parts):
            builder.store(part, row(target, args[4], args[5], c), align=4)
        return context.get_dummy_value()

    index = types.int64
    return types.void(source, index, index, target, index, index), codegen


@intrinsic
def turn_float64(typing_context, source, at, step, target, to, pitch):
    """target[to + pitch * c + r] = source[at + step * r + c] for 8 values c of 8 rows r: shuffles
    within pairs, fours and eights.
    """

    def codegen(context, builder, signature, args):
        source, target = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3)
        )
        word, lane = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(context.get_value_type(types.float64), 8)
        lanes = ir.VectorType(lane, 8)

        def row(array, start, step, r):
            at = builder.add(start, builder.mul(step, word(r)))
            return builder.bitcast(builder.gep(array, [at]), vector.as_pointer())

        parts = [builder.load(row(source, args[1], args[2], r), align=8) for r in range(8)]
        for near in (1, 2, 4):
            masks = [ir.Constant(lanes, [(j & ~near) + high + (8 if j & near else 0) for j in range(8)]) for high in (0, near)]
            pairs = [(parts[i & ~near], parts[i | near], masks[(i & near) > 0]) for i in range(8)]
            parts = [builder.shuffle_vector(*pair) for pair in pairs]
        for c, part in enumerate(parts):
            builder.store(part, row(target, args[4], args[5], c), align=8)
        return context.get_dummy_value()

    index = types.int64
    return types.void(source, index, index, target, index, index), codegen


@register_jitable
def gather(y, w, rows, weights, begin, end, base_y, base_w, width, pitch, index, axes):
    """The elements of adjacent groups, group by group; how many each has."""
    y_offsets = index[axes[31] : axes[32]]
    y_step = axes[21]
    w_offsets = index[axes[35] : axes[36]]
    w_step = axes[23]
    run = axes[20]
    j = 0
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_w = base_w + w_offsets[o]
        turned = run - run % 8 if width % 8 == 0 else 0
        for i in range(0, turned, 8):
            for c in range(0, width, 8):
                turn_float32(y, at_y + i * y_step + c, y_step, rows, c * pitch + j + i, pitch)
        for i in range(turned, run):
            for c in range(width):
                rows[c * pitch + j + i] = y[at_y + i * y_step + c]
        turned = run - run % 8 if width % 8 == 0 else 0
        for i in range(0, turned, 8):
            for c in range(0, width, 8):
                turn_float64(w, at_w + i * w_step + c, w_step, weights, c * pitch + j + i, pitch)
        for i in range(turned, run):
            for c in range(width):
                weights[c * pitch + j + i] = w[at_w + i * w_step + c]
        j += run
    return j


@register_jitable
def scatter(x, rows, begin, end, base_x, width, pitch, index, axes):
    """Write projected groups."""
    x_offsets = index[axes[33] : axes[34]]
    x_step = axes[22]
    run = axes[20]
    j = 0
    for o in range(begin, end):
        at_x = base_x + x_offsets[o]
        turned = run - run % 8 if width % 8 == 0 else 0
        for i in range(0, turned, 8):
            for c in range(0, width, 8):
                turn_float32(rows, c * pitch + j + i, pitch, x, at_x + i * x_step + c, x_step)
        for i in range(turned, run):
            for c in range(width):
                x[at_x + i * x_step + c] = rows[c * pitch + j + i]
        j += run


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
    sums_lanes = memory[at : at + LANES]
    at += LANES
    rows = memory[at : at + 8 * pitch].view(np.float32)
    at += 8 * pitch
    weights = memory[at : at + 16 * pitch].view(np.float64)
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
            # A tile: groups side by side.
            tile, m = item // labels, item % labels
            outer, past = tile // tiles, tile % tiles * LANES
            first, width = outer * extent + past, min(LANES, extent - past)
            base_y = index[y_bases_at + outer] + past * y_lane
            base_x = index[x_bases_at + outer] + past * x_lane
            base_w = index[w_bases_at + outer] + past * w_lane
            begin, end = index[starts_at + m], index[starts_at + m + 1]
            sums = sums_lanes[:width]
            if not projecting:
                measure(y, w, begin, end, base_y, base_w, width, index, axes, sums)
                for c in range(width):
                    value = sums[c]
                    values[(first + c) * labels + m], highest = value, max(highest, bits_of(value))
                continue
            tile_end = first + width
            while first < tile_end:
                width = min(STRIP, tile_end - first)
                n = gather(y, w, rows, weights, begin, end, base_y, base_w, width, pitch, index, axes)
                for c in range(width):
                    group = (first + c) * labels + m
                    row = rows[c * pitch : c * pitch + n]
                    own = weights[c * pitch : c * pitch + n]
                    if values[group] > radii[group * radius_step]:
                        v, u = values[group], radii[group * radius_step]
                        found, fall = solve(row, own, v, u, found - (u / v - share) * fall)
                        share = u / v
                scatter(x, rows, begin, end, base_x, width, pitch, index, axes)
                first += STRIP
                base_y += STRIP
                base_x += STRIP
                base_w += STRIP
