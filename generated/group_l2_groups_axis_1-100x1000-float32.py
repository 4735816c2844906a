"""l2(groups): groups of float32 arrays.

    labelled elements of 8 rows are read together, and added up by label

Groups are swept for their values, and in a second call to project them.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
LANES = 8  # rows that are read together


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


@register_jitable
def down(x):
    """The largest float32 that is not above x >= 0."""
    near = np.float32(x)
    bits = view(np.float32(near), np.int32)
    return view(np.int32(bits - 1 if np.float64(near) > x else bits), np.float32)


@register_jitable(fastmath=FAST)
def measure(y, at_y, y_step, own, sums, tops):
    """The values of some labelled elements' groups, by label; NaN where one is not finite."""
    part_y = span(y, at_y, own.size)
    sums[:] = 0.0
    for i in range(own.size):
        a = abs(np.float64(part_y[i]))
        sums[own[i]] += a * a
    rescued = False
    for m in range(sums.size):
        rescued = rescued or not 1e-280 < sums[m] < 1e300
    if rescued:
        lengths(y, at_y, y_step, own, sums, tops)
        return
    for m in range(sums.size):
        sums[m] = math.sqrt(sums[m])


@register_jitable
def lengths(y, at_y, y_step, own, sums, tops):
    """Those values, where some squares have no room: relative to the largest of a group."""
    part_y = span(y, at_y, own.size)
    bits = view(tops, np.int64)
    bits[:] = 0
    for i in range(own.size):
        bits[own[i]] = max(bits[own[i]], bits_of(abs(np.float64(part_y[i]))))
    for m in range(sums.size):
        if 1e-280 < sums[m] < 1e300:
            sums[m], tops[m] = math.sqrt(sums[m]), -1.0
        elif 0 < tops[m] < np.inf:
            sums[m] = 0.0
        else:
            sums[m], tops[m] = tops[m], -1.0
    for i in range(own.size):
        top = tops[own[i]]
        if top > 0:
            a = abs(np.float64(part_y[i])) / top
            sums[own[i]] += a * a
    for m in range(sums.size):
        sums[m] = tops[m] * math.sqrt(sums[m]) if tops[m] > 0 else sums[m]


@register_jitable(fastmath=FAST, error_model="numpy")
def write(y, x, at_y, y_step, at_x, x_step, own, levels):
    """The projection of some labelled elements, whose groups' levels are found."""
    part_y = span(y, at_y, own.size)
    part_x = span(x, at_x, own.size)
    for i in range(own.size):
        t = levels[own[i]]
        a = abs(np.float64(part_y[i]))
        part_x[i] = math.copysign(a * t, part_y[i])


def turned(builder, parts):
    """The columns of a square of 8 vectors: shuffles within pairs, fours and eights."""
    lanes = ir.VectorType(ir.IntType(32), 8)
    for near in (1, 2, 4):
        masks = [ir.Constant(lanes, [(j & ~near) + high + (8 if j & near else 0) for j in range(8)]) for high in (0, near)]
        pairs = [(parts[i & ~near], parts[i | near], masks[(i & near) > 0]) for i in range(8)]
        parts = [builder.shuffle_vector(*pair) for pair in pairs]
    return parts


@intrinsic
def add_square(typing_context, y, at, step, own, first, cells):
    """cells[8 * m + r] grows by the square of y[at + step * r + j], where m = own[first + j]: for 8 values
    j of 8 rows.
    """

    def codegen(context, builder, signature, args):
        y, own, cells = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 5)
        )
        word = ir.IntType(64)
        vector = ir.VectorType(context.get_value_type(types.float32), 8)
        kind = ir.VectorType(context.get_value_type(types.float64), 8)
        rows = []
        for r in range(8):
            start = builder.gep(y, [builder.add(args[1], builder.mul(args[2], word(r)))])
            rows.append(builder.load(builder.bitcast(start, vector.as_pointer()), align=4))
        for j, found in enumerate(turned(builder, rows)):
            m = builder.load(builder.gep(own, [builder.add(args[4], word(j))]))
            cell = builder.gep(cells, [builder.mul(m, word(8))])
            cell = builder.bitcast(cell, kind.as_pointer())
            sums = builder.load(cell, align=8)
            found = builder.fpext(found, kind)
            sums = builder.fadd(sums, builder.fmul(found, found))
            builder.store(sums, cell, align=8)
        return context.get_dummy_value()

    index = types.int64
    return types.void(y, index, index, own, index, cells), codegen


@intrinsic
def scale_square(typing_context, y, at, step, x, to, leap, own, first, cells):
    """x[to + leap * r + j] = y[at + step * r + j] times cells[8 * m + r], where m = own[first + j]: for 8
    values j of 8 rows.
    """

    def codegen(context, builder, signature, args):
        y, x, own, cells = (
            context.make_array(signature.args[i])(context, builder, args[i]).data
            for i in (0, 3, 6, 8)
        )
        word = ir.IntType(64)
        vector = ir.VectorType(context.get_value_type(types.float32), 8)
        levels = []
        for j in range(8):
            m = builder.load(builder.gep(own, [builder.add(args[7], word(j))]))
            cell = builder.gep(cells, [builder.mul(m, word(8))])
            levels.append(builder.load(builder.bitcast(cell, vector.as_pointer()), align=4))
        for r, level in enumerate(turned(builder, levels)):
            start = builder.gep(y, [builder.add(args[1], builder.mul(args[2], word(r)))])
            found = builder.load(builder.bitcast(start, vector.as_pointer()), align=4)
            found = builder.fmul(found, level)
            start = builder.gep(x, [builder.add(args[4], builder.mul(args[5], word(r)))])
            builder.store(found, builder.bitcast(start, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    index = types.int64
    return types.void(y, index, index, x, index, index, own, index, cells), codegen


@register_jitable(fastmath=FAST)
def measure_rows(y, at_y, y_lane, own, cells):
    """What 8 rows' groups have, by label and row: the sum of squares."""
    cells[:] = 0
    whole = own.size - own.size % 8
    for j in range(0, whole, 8):
        add_square(y, at_y + j, y_lane, own, j, cells)
    for j in range(whole, own.size):
        for r in range(8):
            cell = 8 * own[j] + np.uint64(r)
            a = np.float64(y[at_y + r * y_lane + j])
            cells[cell] += a * a


@register_jitable(fastmath=FINITE, error_model="numpy")
def write_rows(y, at_y, y_lane, x, at_x, x_lane, own, cells):
    """The projection of 8 rows, whose groups' levels are found."""
    whole = own.size - own.size % 8
    for j in range(0, whole, 8):
        scale_square(y, at_y + j, y_lane, x, at_x + j, x_lane, own, j, cells)
    for j in range(whole, own.size):
        for r in range(8):
            t = cells[8 * own[j] + np.uint64(r)]
            y_j = y[at_y + r * y_lane + j]
            x[at_x + r * x_lane + j] = y_j * t


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
    cells = span(memory, at, LANES * labels)
    levels = span(memory, at + LANES * labels, labels)
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            # A tile: rows that are read together.
            tile = item
            outer, past = tile // tiles, tile % tiles * LANES
            first, width = outer * extent + past, min(LANES, extent - past)
            base_y = index[y_bases_at + outer] + past * y_lane
            base_x = index[x_bases_at + outer] + past * x_lane
            own = view(span(index, starts_at, axes[20]), np.uint64)
            if width == LANES and not projecting:
                found = cells
                measure_rows(y, base_y, y_lane, own, found)
                for r in range(LANES):
                    sums = span(values, (first + r) * labels, labels)
                    for m in range(labels):
                        sums[m] = math.sqrt(found[LANES * m + r])
            elif not projecting:
                for r in range(width):
                    sums = span(values, (first + r) * labels, labels)
                    measure(y, base_y + r * y_lane, 1, own, sums, levels)
            if not projecting:
                for group in range(first * labels, (first + width) * labels):
                    highest = max(highest, bits_of(values[group]))
                continue
            limits = view(cells, np.float32)
            for r in range(width):
                for m in range(labels):
                    group = (first + r) * labels + m
                    v, u = values[group], radii[group * radius_step]
                    limits[LANES * m + r] = down(u / v) if v > u else np.float32(1)
            if width == LANES:
                write_rows(y, base_y, y_lane, x, base_x, x_lane, own, limits)
            else:
                for r in range(width):
                    for m in range(labels):
                        levels[m] = limits[LANES * m + r]
                    write(y, x, base_y + r * y_lane, 1, base_x + r * x_lane, 1, own, levels)
