"""The caches of the machines that plans are made for: what they have room for."""

BLOCK_BYTES = 128 << 10  # of one unit of work: several fit in a core's cache
SCRATCH_BYTES = 256 << 10  # of one thread's tile: stays in a core's second-level cache
FAR_SCRATCH_BYTES = 4 << 20  # of a tile that is as wide as reading it in short runs asks for
STREAMED_BYTES = 16 << 20  # arrays from this size on come from main memory
