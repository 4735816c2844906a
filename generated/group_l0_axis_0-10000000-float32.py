"""l0: groups of float32 arrays.

    a group is contiguous in memory, and is worked on where it lies, by all threads together

A group is swept for its value, and in a second call to project it: threads share each pass over it, and
meet at its end.
They share blocks of its elements, which depend on the shape alone, and what was found in these is added
up in their order: so results do not depend on the threads.
Written by projgen, codegen 2.
"""

import math
from collections import namedtuple

import numpy as np
from numba import cfunc, types
from numba.extending import intrinsic, register_jitable

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
FINITE = FAST | {"nnan"}  # where input has passed the check
SAMPLE = 4096  # values that are looked at first
MARGIN = 128  # of these, by which the least that is kept may be wrong
STEP = 1 << 18  # between magnitudes, as integers: some percent
MAGNITUDE = np.int32(0x7FFFFFFF)

SOME = 16  # blocks, of which parts say where a search is to start
# More cells of the desk: of a pass the blocks that are done; passes that have ended; how many threads are
# waited for, once that is settled. The second cell after that of a thread's share counts the passes
# to whose end it has come.
DONE, ENDED, SEATED = 8, 16, 3

# A thread's part in the passes over a group: its seat at the desk, and among how many; how many blocks the
# passes have, and how many values these; how many passes have ended for it, and how many blocks of the
# next one it has done; what was found in the blocks of a pass, and in those that have ended.
Crew = namedtuple("Crew", "desk seat seats blocks piece turns slots record")
PLAIN = {"fastmath": False, "error_model": "numpy"}  # said once, what these call is compiled once


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


@register_jitable(**PLAIN)
def coarse(crew, size, blocks):
    """For passes over so many values in so many blocks."""
    piece = -(-size // blocks)
    return Crew(crew.desk, crew.seat, crew.seats, blocks, piece, crew.turns, crew.slots, crew.record)


@register_jitable(**PLAIN)
def draw_block(crew):
    """The next block of a pass for a thread; -1 when all are drawn."""
    return draw(crew.desk, crew.seat, crew.seats, crew.turns[0], crew.blocks)


@register_jitable(**PLAIN)
def leave(crew, block, first, second, third):
    """Leave what was found in a block."""
    crew.slots[3 * block], crew.slots[3 * block + 1], crew.slots[3 * block + 2] = first, second, third
    crew.turns[1] += 1


@register_jitable(**PLAIN)
def leave_bits(crew, block, first, second):
    """The same of integers."""
    slots = view(crew.slots, np.int64)
    slots[3 * block], slots[3 * block + 1] = first, second
    crew.turns[1] += 1


@register_jitable(**PLAIN)
def forget(crew, turn):
    """Wait for who may still need the record of a pass; who has not come by then need not come."""
    if read(crew.desk, SEATED) == 0:
        add(crew.desk, SEATED, min(add(crew.desk, 0, crew.seats), crew.seats))
    for other in range(read(crew.desk, SEATED)):
        while other != crew.seat and read(crew.desk, SHARES + 16 * other + 2) <= turn + 1:
            pass


@register_jitable(**PLAIN)
def ends(crew):
    """Whether a thread's blocks were the last ones of a pass."""
    done = crew.turns[1]
    last = done > 0 and add(crew.desk, DONE, done) + done == crew.blocks
    if last and 3 * crew.turns[0] >= crew.record.size:
        forget(crew, crew.turns[0] - crew.record.size // 3)
    return last


@register_jitable(**PLAIN)
def go_on(crew, last):
    """Tell the others of the end of a pass, or wait for it; where its record is."""
    if last:
        add(crew.desk, DONE, -crew.blocks)
        add(crew.desk, ENDED, 1)
    add(crew.desk, SHARES + 16 * crew.seat + 2, 1)
    while read(crew.desk, ENDED) <= crew.turns[0]:
        pass
    at = 3 * crew.turns[0] % crew.record.size
    crew.turns[0], crew.turns[1] = crew.turns[0] + 1, 0
    return at


@register_jitable(**PLAIN)
def meet(crew):
    """The end of a pass: the sums of what its blocks found, in their order."""
    record = crew.record
    last = ends(crew)
    if last:
        first = second = third = 0.0
        for block in range(crew.blocks):
            first += crew.slots[3 * block]
            second += crew.slots[3 * block + 1]
            third += crew.slots[3 * block + 2]
        at = 3 * crew.turns[0] % record.size
        record[at], record[at + 1], record[at + 2] = first, second, third
    at = go_on(crew, last)
    return record[at], record[at + 1], record[at + 2]


@register_jitable(**PLAIN)
def meet_highest(crew):
    """The same of integers, of which the highest are kept."""
    slots, record = view(crew.slots, np.int64), view(crew.record, np.int64)
    last = ends(crew)
    if last:
        first, second = slots[0], slots[1]
        for block in range(1, crew.blocks):
            first, second = max(first, slots[3 * block]), max(second, slots[3 * block + 1])
        at = 3 * crew.turns[0] % record.size
        record[at], record[at + 1] = first, second
    at = go_on(crew, last)
    return record[at], record[at + 1]


@register_jitable
def bits_of(value):
    """The bits of a float but its sign; those of infinity and NaN are the highest."""
    return view(np.float64(value), np.int64) & np.int64(0x7FFFFFFFFFFFFFFF)


@register_jitable(fastmath=FAST)
def value_of(group, crew):
    """How many of a group's values are not zero; NaN if one is not finite."""
    while True:
        block = draw_block(crew)
        if block < 0:
            break
        offset = block * crew.piece
        extent = min(crew.piece, group.size - offset)
        row = span(group, offset, extent)
        count, spoilt = 0.0, 0.0
        for j in range(row.size):
            a = abs(np.float64(row[j]))
            count += 1.0 if a > 0 else 0.0
            spoilt += a * 0.0
        leave(crew, block, count, spoilt, 0.0)
    count, spoilt = meet(crew)[:2]
    return count + spoilt


@register_jitable
def reaching(cells, least):
    """How many magnitudes are at or above that."""
    count = np.int32(0)
    for j in range(cells.size):
        count += np.int32((cells[j] & MAGNITUDE) >= least)
    return int(count)


@register_jitable
def close_in(cells, wanted, near, step):
    """low, high and a number: as many magnitudes are at or above low, as many as are wanted or more,
    and fewer are at or above high. They are next to each other unless the number is right.

    The search goes out from `near`, unless that is 0, and then in: to where counts would be right if
    they fell evenly, and now and then by halves, for they may not.
    """
    low, high, turn = np.int32(0), MAGNITUDE, 0
    several, fewer = cells.size, 0
    while several != wanted and high - low > 1:
        turn += 1
        if low < near < high:
            middle = near
        elif low == 0 or high == MAGNITUDE or turn % 4 == 0:
            middle = np.int32(low + (high - low) // 2)
        else:
            part = (several - wanted + 0.5) / (several - fewer)
            middle = np.int32(min(max(low + int((high - low) * part), low + 1), high - 1))
        count = reaching(cells, middle)
        if count >= wanted:
            low, several = middle, count
            near = np.int32(middle + min(step, high - middle) if high == MAGNITUDE and near > 0 else 0)
        else:
            high, fewer = middle, count
            near = np.int32(max(middle - step, 0) if low == 0 and near > 0 else 0)
        step = min(4 * step, 1 << 30)
    return low, high, several


@register_jitable
def keep(cells, results, least):
    """Keep what is at or above that."""
    least = np.int32(least)
    for j in range(min(cells.size, results.size)):
        results[j] = cells[j] if (cells[j] & MAGNITUDE) >= least else cells[j] & ~MAGNITUDE


@register_jitable
def estimate(cells, some, wanted):
    """Two magnitudes between which is, as some of a group's values have it, the least that is kept."""
    skip = (cells.size // SAMPLE - 1) | 1  # odd: the values of a matrix may have a period
    for j in range(SAMPLE):
        some[j] = (cells[j * skip] & MAGNITUDE)
    near = int(wanted / cells.size * SAMPLE)
    low, high = np.int32(0), MAGNITUDE
    if near + MARGIN < SAMPLE:
        low = close_in(some, near + MARGIN, np.int32(0), STEP)[0]
    if near > MARGIN:
        high = close_in(some, near - MARGIN, low, STEP)[1]
    return low, high


@register_jitable
def select(all_cells, all_kept, counts, low, high, crew):
    """Copy what is at or above `low` and below `high`, block by block; how many that is, and how many
    are above it."""
    width = view(np.int32(high - low), np.uint32)
    while True:
        block = draw_block(crew)
        if block < 0:
            break
        offset = block * crew.piece
        extent = min(crew.piece, all_cells.size - offset)
        cells = span(all_cells, offset, extent)
        kept = span(all_kept, offset, extent)
        several, fewer = np.uint64(0), reaching(cells, high)
        for j in range(min(cells.size, kept.size)):
            a = (cells[j] & MAGNITUDE)
            kept[several] = a  # to be overwritten, if it is not among them
            several += np.uint64(view(np.int32(a - low), np.uint32) < width)
        counts[block] = several
        leave(crew, block, several, fewer, 0.0)
    several, fewer = meet(crew)[:2]
    return int(several), int(fewer)


@register_jitable
def reaching_of(all_kept, counts, least, crew):
    """How many of what is kept is at or above that."""
    while True:
        block = draw_block(crew)
        if block < 0:
            break
        offset = block * crew.piece
        extent = min(crew.piece, all_kept.size - offset)
        kept = span(all_kept, offset, extent)
        count = reaching(span(kept, 0, int(counts[block])), least)
        leave(crew, block, count, 0.0, 0.0)
    count = meet(crew)[0]
    return int(count)


@register_jitable
def cut_off(all_cells, level, number, crew):
    """Where the one of that number ends, of the magnitudes that are at a level."""
    while True:
        block = draw_block(crew)
        if block < 0:
            break
        offset = block * crew.piece
        extent = min(crew.piece, all_cells.size - offset)
        cells = span(all_cells, offset, extent)
        count = reaching(cells, level) - reaching(cells, level + 1)
        leave(crew, block, count, 0.0, 0.0)
    count = meet(crew)[0]
    lone = coarse(crew, all_cells.size, 1)
    while True:
        block = draw_block(lone)
        if block < 0:
            break
        cells = all_cells
        cut, piece, counts = 0, crew.piece, crew.slots  # which still hold what the pass before this one found
        while number > counts[3 * (cut // piece)]:
            number -= counts[3 * (cut // piece)]
            cut += piece
        while number > 0:
            number -= 1 if (cells[cut] & MAGNITUDE) == level else 0
            cut += 1
        leave(lone, block, cut, 0.0, 0.0)
    cut = meet(lone)[0]
    return int(cut)


@register_jitable
def solve(group, group_x, spare, crew, v, u, guess):
    """Keep the int(u) largest values of a group that has more; of equal ones the first."""
    wanted, n = int(u), group.size
    all_cells, all_results = view(group, np.int32), view(group_x, np.int32)
    some, counts = span(view(spare, np.int32), 0, SAMPLE), span(spare, SAMPLE, crew.blocks)
    all_kept = view(span(spare, SAMPLE + crew.blocks, spare.size - SAMPLE - crew.blocks), np.int32)
    lone = coarse(crew, all_cells.size, 1)
    while True:
        block = draw_block(lone)
        if block < 0:
            break
        cells = all_cells
        low, high = estimate(cells, some, wanted)
        leave_bits(lone, block, low, high)
    low, high = meet_highest(lone)
    low, high = np.int32(low), np.int32(high)
    several, fewer = select(all_cells, all_kept, counts, low, high, crew)
    if not fewer <= wanted <= several + fewer:  # a poor estimate: all are searched among
        low, high = np.int32(0), MAGNITUDE
        several, fewer = select(all_cells, all_kept, counts, low, high, crew)
    above, turn = fewer, 0
    several += fewer
    if fewer == wanted:
        low, several = high, fewer
    # As many magnitudes are at or above low as are wanted, or more, and fewer are at or above high.
    while several != wanted and high - low > 1:
        turn += 1
        part = 0.5 if turn % 4 == 0 else (several - wanted + 0.5) / (several - fewer)
        middle = np.int32(min(max(low + int((high - low) * part), low + 1), high - 1))
        count = above + reaching_of(all_kept, counts, middle, crew)
        if count >= wanted:
            low, several = middle, count
        else:
            high, fewer = middle, count
    cut = n  # where the last one that is kept of equal ones ends
    if several > wanted:
        cut = cut_off(all_cells, low, wanted - fewer, crew)
    while True:
        block = draw_block(crew)
        if block < 0:
            break
        offset = block * crew.piece
        extent = min(crew.piece, all_cells.size - offset)
        cells = span(all_cells, offset, extent)
        results = span(all_results, offset, extent)
        own = min(max(cut - block * crew.piece, 0), cells.size)
        keep(span(cells, 0, own), span(results, 0, own), low)
        keep(span(cells, own, cells.size - own), span(results, own, cells.size - own), low + 1)
        leave(crew, block, 0.0, 0.0, 0.0)
    meet(crew)
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
    extent = axes[15]
    y_bases_at = axes[17]
    x_bases_at = axes[18]
    y_lane = axes[24]
    x_lane = axes[25]
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
    values = span(memory, 0, groups)
    radii = span(memory, groups, groups)
    room = span(memory, slots_at, slots_size)
    at = slots_at + slots_size + seat * scratch_size
    turns = view(span(memory, at, 2), np.int64)
    turns[:] = 0
    first = 3 * max(pieces, SOME)
    slots, record = span(room, 0, first), span(room, first, slots_size - spare_size - first)
    crew = Crew(desk, seat, seats, pieces, piece, turns, slots, record)
    spare = span(room, slots_size - spare_size, spare_size)
    radius_step = read(desk, 2)
    projecting = radii[0] >= 0
    highest = np.int64(0)
    # Of the last group: what its search found, for which radius by value, and how it falls with that.
    found, share, fall = 0.0, 0.0, 1.0
    for item in range(groups):
        outer, past = item // extent, item % extent
        at_y = index[y_bases_at + outer] + past * y_lane
        group = span(y, at_y, pitch)
        at_x = index[x_bases_at + outer] + past * x_lane
        group_x = span(x, at_x, pitch)
        if not projecting:
            value = value_of(group, crew)
            values[item], highest = value, max(highest, bits_of(value))
        elif values[item] > radii[item * radius_step]:
            v, u = values[item], radii[item * radius_step]
            found, fall = solve(group, group_x, spare, crew, v, u, found - (u / v - share) * fall)
            share = u / v
        else:
            while True:
                block = draw_block(crew)
                if block < 0:
                    break
                offset = block * crew.piece
                extent = min(crew.piece, group.size - offset)
                row = span(group, offset, extent)
                target = span(group_x, offset, extent)
                for j in range(row.size):
                    target[j] = row[j]
                leave(crew, block, 0.0, 0.0, 0.0)
            meet(crew)
    swap(desk, SHARES + 16 * seat + 1, 0, highest)
    return 0
