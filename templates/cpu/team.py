"""Threads that wait for work: one leads a call, the others follow it into the same kernel.

The lead rings a bell. Followers that hear it come in, if the door is still open, and run the
kernel with the lead's arguments: the kernel hands out blocks to whoever is there. The lead closes
the door when its own run is over, and waits until the last follower is out. Nobody waits for a
follower that has not come.
"""

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

# Cells of the board, each on cache lines of its own.
DOOR, INSIDE, BELL, CALL, FOLLOWERS = 0, 16, 32, 48, 54
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
def join(board):
    """Run the call on the board, unless its lead is gone or has the followers it wants."""
    if add(board, INSIDE, 1) < read(board, FOLLOWERS) and read(board, DOOR) == 1:
        call(board)
    add(board, INSIDE, -1)


@cfunc(types.int64(types.CPointer(types.int64)), cache=True)
def lead(board):
    """Run the call on the board with whoever follows; what it returned."""
    add(board, DOOR, 1)
    add(board, BELL, 1)
    result = call(board)
    add(board, DOOR, -1)
    while read(board, INSIDE) > 0:
        pass
    return result


@cfunc(types.int64(types.CPointer(types.int64), types.int64, types.int64), cache=True)
def follow(board, heard, patience):
    """Join call after call, until `patience` looks at the bell in a row found it silent.

    `heard` is what the bell stood at when this thread last looked; returns what it stands at.
    """
    silent = 0
    while silent < patience:
        bell = read(board, BELL)
        if bell == heard:
            silent += 1
        else:
            heard = bell
            silent = 0
            join(board)
    return heard
