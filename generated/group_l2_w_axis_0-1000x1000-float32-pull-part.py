"""l2(w): takes gradients back through the projection of groups of float32 arrays.

    groups lie side by side in memory: 256 are worked on together

A first sweep sums what the gradients of the groups' radii are made of, a second one writes those of
the values; `rise` is what reaches the value of a group.
Of a group, v is the value and u the radius; of its values, y are the elements, x their projection, g
its gradient and w the weights. Work is in float64.
The threads share blocks of groups, which depend on the shape alone: so results do not depend on
the threads.
Written by projgen, codegen 2.
"""

import numpy as np
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
EXACT = {"contract", "nsz"}  # what is no sum keeps its order: weights may be very large, or small
LANES = 256  # groups side by side that are worked on together


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


# The desk, where the threads of a call meet. Cell 0 counts them, the next ones say where arrays are and
# what is asked for. Each thread's share of the blocks has a counter.
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
    """To the float32 values at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), codegen


@intrinsic
def pointer_to_weights(typing_context, address):
    """To the float64 values at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), codegen


@register_jitable(fastmath=EXACT)
def along(y, g):
    """g in the direction in which the magnitude of y grows."""
    return g if y > 0 else -g


@register_jitable(fastmath=FAST, error_model="numpy")
def gather(y, x, g, w, begin, end, base_y, base_w, width, radii, totals, squares, losts, steeps, scratch, index, axes):
    """What is summed of groups side by side."""
    for j in range(width):
        scratch[j] = 0.0
        scratch[LANES + j] = 0.0
        scratch[2 * LANES + j] = 0.0
        scratch[3 * LANES + j] = 0.0
        scratch[4 * LANES + j] = radii[j]
    y_offsets = span(index, axes[31], axes[32] - axes[31])
    y_step = axes[21]
    w_offsets = span(index, axes[35], axes[36] - axes[35])
    w_step = axes[23]
    run = axes[20]
    for o in range(begin, end):
        for i in range(run):
            at_y = base_y + y_offsets[o] + i * y_step
            at_w = base_w + w_offsets[o] + i * w_step
            y_row = span(y, at_y, width)
            x_row = span(x, at_y, width)
            g_row = span(g, at_y, width)
            w_row = span(w, at_w, width)
            for j in range(width):
                y_j = np.float64(y_row[j])
                x_j = np.float64(x_row[j])
                g_j = np.float64(g_row[j])
                w_j = w_row[j]
                u = scratch[4 * LANES + j]
                total = scratch[j]
                square = scratch[LANES + j]
                lost = scratch[2 * LANES + j]
                steep = scratch[3 * LANES + j]
                normal = w_j * (w_j * abs(x_j) / u)
                d = chosen(y_j != 0, x_j / y_j, 0.0)
                total += d * normal * along(y_j, g_j)
                square += d * normal * normal
                lost += normal * abs(y_j - x_j)
                steep += normal * w_j * w_j * abs(x_j)
                scratch[j] = total
                scratch[LANES + j] = square
                scratch[2 * LANES + j] = lost
                scratch[3 * LANES + j] = steep
    for j in range(width):
        totals[j] = scratch[j]
        squares[j] = scratch[LANES + j]
        losts[j] = scratch[2 * LANES + j]
        steeps[j] = scratch[3 * LANES + j]


@register_jitable(fastmath=EXACT, error_model="numpy")
def settle(values, radii, totals, squares, slopes):
    """The gradients of the groups' radii, by what was summed."""
    for group in range(slopes.size):
        v, u, total, square = values[group], radii[group], totals[group], squares[group]
        slopes[group] = total / (square if square > 0 else 1.0) if 0 < u < v else 0.0


@register_jitable(fastmath=EXACT, error_model="numpy")
def weigh(v, u, total, square, lost, steep, rise):
    """What the gradients of a group's values need to know of it."""
    shrink = np.inf if u <= 0 else lost / (steep if steep > 0 else 1.0) if u < v else 0.0
    tilt = total / (square if square > 0 else 1.0) / u if 0 < u < v else 0.0
    lift = rise / v if v > 0 else 0.0
    return shrink, tilt, lift


@register_jitable(fastmath=EXACT, error_model="numpy")
def share(y, x, g, w, out, begin, end, base_y, base_w, width, scratch, index, axes):
    """The gradients of the values of groups side by side."""
    y_offsets = span(index, axes[31], axes[32] - axes[31])
    y_step = axes[21]
    w_offsets = span(index, axes[35], axes[36] - axes[35])
    w_step = axes[23]
    run = axes[20]
    for o in range(begin, end):
        for i in range(run):
            at_y = base_y + y_offsets[o] + i * y_step
            at_w = base_w + w_offsets[o] + i * w_step
            y_row = span(y, at_y, width)
            x_row = span(x, at_y, width)
            g_row = span(g, at_y, width)
            w_row = span(w, at_w, width)
            out_row = span(out, at_y, width)
            for j in range(width):
                y_j = np.float64(y_row[j])
                x_j = np.float64(x_row[j])
                g_j = np.float64(g_row[j])
                w_j = w_row[j]
                shrink = scratch[j]
                tilt = scratch[LANES + j]
                lift = scratch[2 * LANES + j]
                found = chosen(y_j != 0, x_j / y_j, 1.0 / (1.0 + shrink * w_j * w_j)) * (g_j - w_j * (w_j * x_j * tilt))
                found = chosen(w_j == 0, g_j, found)
                found += w_j * (w_j * y_j * lift)
                out_row[j] = found


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
def pull(y_at, x_at, geometry, work, desk):
    """Take part in one call; any number of threads may, with the same arguments.

    `geometry` holds extents and offsets; `work` has room, and then what is known of the groups:
    values, radii, slopes, totals, squares, losts, steeps.
    The desk's cells 1 and 2 have the addresses of the projection's gradient and of the result,
    cell 4 that of the weights.

    Cell 3 says what is asked for: 1 for the sums, 2 for the gradients of the values by these, 3 for
    both, 0 for the gradients of the radii, which one thread works out by the sums.
    For those of the values `slopes` has what reaches the values of the groups.
    """
    axes = fetch(geometry, 37)
    index_size = axes[0]
    y_size = axes[1]
    w_size = axes[3]
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
    w_bases_at = axes[19]
    y_lane = axes[24]
    w_lane = axes[26]
    seat = add(desk, 0, 1)
    if seat >= seats:
        return 0
    index = span(geometry, 0, index_size)
    y = span(y_at, 0, y_size)
    x = span(x_at, 0, y_size)
    g = span(pointer(read(desk, 1)), 0, y_size)
    out = span(pointer(read(desk, 2)), 0, y_size)
    w = span(pointer_to_weights(read(desk, 4)), 0, w_size)
    memory = span(work, 0, memory_size)
    scratch = span(memory, seat * scratch_size, scratch_size)
    memory = span(memory, seats * scratch_size, memory_size - seats * scratch_size)
    values = span(memory, 0, groups)
    radii = span(memory, groups, groups)
    slopes = span(memory, 2 * groups, groups)
    totals = span(memory, 3 * groups, groups)
    squares = span(memory, 4 * groups, groups)
    losts = span(memory, 5 * groups, groups)
    steeps = span(memory, 6 * groups, groups)
    task = read(desk, 3)
    if task == 0:
        settle(values, radii, totals, squares, slopes)
        return 0
    while True:
        block = draw(desk, seat, seats, 1, blocks)
        if block < 0:
            return 0
        for item in range(block * block_size, min((block + 1) * block_size, items)):
            # A tile: groups side by side.
            tile, m = item // labels, item % labels
            outer, past = tile // tiles, tile % tiles * LANES
            first, width = (outer * labels + m) * extent + past, min(LANES, extent - past)
            begin, end = index[starts_at + m], index[starts_at + m + 1]
            base_y = index[y_bases_at + outer] + past * y_lane
            base_w = index[w_bases_at + outer] + past * w_lane
            if task != 2:
                gather(y, x, g, w, begin, end, base_y, base_w, width, span(radii, first, width), span(totals, first, width), span(squares, first, width), span(losts, first, width), span(steeps, first, width), scratch, index, axes)
            if task != 1:
                for j in range(width):
                    shrink, tilt, lift = weigh(values[first + j], radii[first + j], totals[first + j], squares[first + j], losts[first + j], steeps[first + j], slopes[first + j])
                    scratch[j] = shrink
                    scratch[LANES + j] = tilt
                    scratch[2 * LANES + j] = lift
                share(y, x, g, w, out, begin, end, base_y, base_w, width, scratch, index, axes)
