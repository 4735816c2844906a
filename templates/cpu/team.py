"""Threads that wait for work: one leads a call, the others follow it into the same kernel.

The lead rings a bell. Followers that hear it come in, once, and run the kernel with the lead's
arguments: the kernel hands out blocks to whoever is there. When its own run is over the lead rings
again, so that nobody else comes in, and waits until the last follower is out. Nobody waits for a
follower that has not come.
"""

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

# Cells of the board, those that change on cache lines of their own. The bell counts: odd while a
# call is open, so that its number names the call.
BELL, INSIDE, ENTRIES, CALL, FOLLOWERS = 0, 16, 32, 48, 54
CELLS = 64


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
def call(typing_context, cells):
    """Call the function whose address, and five arguments, stand on the board from CALL on."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        words = [builder.load(builder.gep(args[0], [word(CALL + i)])) for i in range(6)]
        kind = ir.FunctionType(word, [word] * 5).as_pointer()
        return builder.call(builder.inttoptr(words[0], kind), words[1:])

    return types.int64(cells), codegen


@njit(nogil=True)
def join(board, number):
    """Run call `number`, unless it is over, or has the followers that it wants."""
    add(board, INSIDE, 1)
    if read(board, BELL) == number and add(board, ENTRIES, 1) < read(board, FOLLOWERS):
        call(board)
    add(board, INSIDE, -1)


@cfunc(types.int64(types.CPointer(types.int64)), cache=True)
def lead(board):
    """Run the call on the board with whoever follows; what it returned."""
    add(board, ENTRIES, -read(board, ENTRIES))
    add(board, BELL, 1)
    result = call(board)
    add(board, BELL, 1)
    while read(board, INSIDE) > 0:
        pass
    return result


@cfunc(types.int64(types.CPointer(types.int64), types.int64, types.int64), cache=True)
def follow(board, heard, patience):
    """Join call after call, until `patience` looks at the bell in a row found nothing new.

    `heard` is the number that the bell stood at when this thread last looked; returns the latest.
    """
    silent = 0
    while silent < patience:
        number = read(board, BELL)
        if number == heard:
            silent += 1
            continue
        heard = number
        if number % 2 == 1:
            silent = 0
            join(board, number)
    return heard
