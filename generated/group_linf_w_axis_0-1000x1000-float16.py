"""linf(w): groups of float16 arrays.

    groups lie side by side in memory: 1024 are worked on together, where they lie, some of their rows at a time
    arithmetic is in float32, and rounded when written

A group's elements are read for its value, and in a second call to project it.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import math

import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
LANES = 1024  # groups side by side that are worked on together
MINUS_ZERO = np.uint64(1 << 63)  # its bits: those of weights below it are higher
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



def converts(triple, cpu, features):
    """Whether the processor converts float16."""
    return triple.startswith(("aarch64", "arm64")) or {"+avx", "+f16c"} <= set(features.split(","))


@intrinsic
def widen_at_once(typing_context, stored):
    """The value of a float16 in float32."""

    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), codegen


@intrinsic
def narrow_at_once(typing_context, x):
    """The float16 that is nearest to a float32, of two the even one."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), codegen


@register_jitable
def widen_by_steps(stored):
    """The same from the bits: an exponent starts 112 later, and that of NaN and inf is the last."""
    magnitude = np.int32(stored & np.int16(0x7FFF))
    sign = np.int32(np.int32(stored) & np.int32(-0x80000000))
    scaled = view(np.int32(magnitude << 13), np.float32) * np.float32(2.0**112)
    last = np.int32(0x7F800000) if magnitude >= 0x7C00 else np.int32(0)
    return view(np.int32(view(np.float32(scaled), np.int32) | last | sign), np.float32)


@register_jitable
def narrow_by_steps(x):
    """The same from the bits; below 2**-14, a sum with 1/2 has as many of them as are kept."""
    bits = view(np.float32(x), np.int32)
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    odd = np.int32(magnitude >> 13) & np.int32(1)
    near = np.int32(np.int32(magnitude - np.int32(112 << 23) + np.int32(0xFFF) + odd) >> 13)
    sum_with_half = np.float32(view(magnitude, np.float32) + np.float32(0.5))
    small = np.int32(view(sum_with_half, np.int32) - np.int32(0x3F000000))
    rounded = min(near, np.int32(0x7C00)) if magnitude >= np.int32(0x38800000) else small
    return np.int16(rounded | np.int32(np.int32(bits >> 16) & np.int32(-0x8000)))


CONVERTS = converts(*cpu_target.target_context.codegen().magic_tuple())
widen = widen_at_once if CONVERTS else widen_by_steps
narrow = narrow_at_once if CONVERTS else narrow_by_steps


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
def unless_free(limit, w, infinity):
    """A limit, for a weight above 0; it is found first, so that the compiler finds vectors."""
    return limit if w > 0 else infinity


@register_jitable(fastmath=FAST)
def measure(y, w, begin, end, base_y, base_w, width, index, axes, run, tops):
    """The bits of the largest of the groups of a tile. Returns whether a weight is below 0."""
    tops[:] = 0
    most = np.uint64(0)
    y_offsets = span(index, axes[31], end)
    y_step = axes[21]
    w_offsets = span(index, axes[35], end)
    w_step = axes[23]
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
                top = tops[c]
                a = abs(np.float64(widen(row_0[c])))
                w_c = np.float64(own_0[c])
                most = max(most, view(np.float64(own_0[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                a = abs(np.float64(widen(row_1[c])))
                w_c = np.float64(own_1[c])
                most = max(most, view(np.float64(own_1[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                a = abs(np.float64(widen(row_2[c])))
                w_c = np.float64(own_2[c])
                most = max(most, view(np.float64(own_2[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                a = abs(np.float64(widen(row_3[c])))
                w_c = np.float64(own_3[c])
                most = max(most, view(np.float64(own_3[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                a = abs(np.float64(widen(row_4[c])))
                w_c = np.float64(own_4[c])
                most = max(most, view(np.float64(own_4[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                a = abs(np.float64(widen(row_5[c])))
                w_c = np.float64(own_5[c])
                most = max(most, view(np.float64(own_5[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                a = abs(np.float64(widen(row_6[c])))
                w_c = np.float64(own_6[c])
                most = max(most, view(np.float64(own_6[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                a = abs(np.float64(widen(row_7[c])))
                w_c = np.float64(own_7[c])
                most = max(most, view(np.float64(own_7[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                tops[c] = top
            at_y += 8 * y_step
            at_w += 8 * w_step
        for i in range(whole, run):
            row_0 = span(y, at_y, width)
            own_0 = span(w, at_w, width)
            for c in range(width):
                top = tops[c]
                a = abs(np.float64(widen(row_0[c])))
                w_c = np.float64(own_0[c])
                most = max(most, view(np.float64(own_0[c]), np.uint64))
                top = max(top, view(np.float64(w_c * a), np.int64) & MAGNITUDE)
                tops[c] = top
            at_y += y_step
            at_w += w_step
    return most > MINUS_ZERO


@register_jitable(fastmath=FINITE, error_model="numpy")
def write(y, x, w, begin, end, base_y, base_x, base_w, width, index, axes, run, level):
    """The projection of the groups of a tile, whose levels are found."""
    y_offsets = span(index, axes[31], end)
    y_step = axes[21]
    x_offsets = span(index, axes[33], end)
    x_step = axes[22]
    w_offsets = span(index, axes[35], end)
    w_step = axes[23]
    for o in range(begin, end):
        at_y = base_y + y_offsets[o]
        at_x = base_x + x_offsets[o]
        at_w = base_w + w_offsets[o]
        for i in range(run):
            row_0 = span(y, at_y, width)
            own_0 = span(w, at_w, width)
            target = span(x, at_x, width)
            for c in range(width):
                t = level[c]
                y_c = widen(row_0[c])
                w_c = np.float64(own_0[c])
                limit = np.float32(unless_free(t / w_c * (1.0 - 2.0**-24) - 7e-46, w_c, np.inf))
                target[c] = narrow(np.float32(min(max(y_c, -limit), limit)))
            at_y += y_step
            at_x += x_step
            at_w += w_step


@cfunc(
    types.int64(
        types.CPointer(types.int16),
        types.CPointer(types.int16),
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
    tiles = axes[14]
    extent = axes[15]
    starts_at = axes[16]
    y_bases_at = axes[17]
    x_bases_at = axes[18]
    w_bases_at = axes[19]
    y_lane = axes[24]
    x_lane = axes[25]
    w_lane = axes[26]
    pieces = axes[27]
    piece = axes[28]
    slots_at = axes[29]
    slots_size = axes[30]
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
    at = 2 * groups + slots_size + seat * scratch_size
    sums_lanes = span(memory, at, LANES)
    level_lanes = span(memory, at + LANES, LANES)
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            swap(desk, SHARES + 16 * seat + 1, 0, highest)
            return 0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            # Some rows of a tile: groups side by side.
            tile, part = item // pieces, item % pieces
            outer, past = tile // tiles, tile % tiles * LANES
            first, width = outer * extent + past, min(LANES, extent - past)
            base_y = index[y_bases_at + outer] + past * y_lane
            base_x = index[x_bases_at + outer] + past * x_lane
            base_w = index[w_bases_at + outer] + past * w_lane
            begin, end, run = index[starts_at], index[starts_at + 1], axes[20]
            if end - begin > 1:
                begin, end = begin + part * piece, min(begin + (part + 1) * piece, end)
            else:
                run = min(piece, run - part * piece)
                base_y += part * piece * axes[21]
                base_x += part * piece * axes[22]
                base_w += part * piece * axes[23]
            sums = span(sums_lanes, 0, width)
            level = span(level_lanes, 0, width)
            if not projecting:
                found = span(memory, slots_at + (outer * pieces + part) * extent + past, width) if slots_size > 0 else span(values, first, width)
                if measure(y, w, begin, end, base_y, base_w, width, index, axes, run, view(sums, np.int64)):
                    highest = bits_of(np.inf)  # weights are looked at again
                for c in range(width):
                    value = sums[c]
                    found[c], highest = value, max(highest, bits_of(value))
                continue
            for c in range(width):
                group = first + c
                v, u = values[group], radii[group * radius_step]
                level[c] = u if v > u else np.inf
            write(y, x, w, begin, end, base_y, base_x, base_w, width, index, axes, run, level)
