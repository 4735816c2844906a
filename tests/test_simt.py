"""The machine that runs CUDA kernels on the CPU: what it does right, and all that it catches."""

from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from simt import build
from simt.run import At, Buffer, Launch, Part, Simt, SimtError

pytestmark = pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))

RIGHT = r"""
extern "C" __global__ void __launch_bounds__(128) squares(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * x[i];
}

extern "C" __global__ void reverse(const int* x, int* y) {
    __shared__ int held[64];
    held[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = held[63 - threadIdx.x];
}

extern "C" __global__ void reverse_dynamic(const int* x, int* y) {
    extern __shared__ int held[];
    held[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = held[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void places(int* y) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[block * (blockDim.x * blockDim.y * blockDim.z) + thread] = thread + 100 * block;
}

extern "C" __global__ void warp(int* y) {
    const unsigned all = 0xffffffffu;
    const int t = threadIdx.x;
    y[t] = __shfl_xor_sync(all, t, 16);
    y[t + 32] = __shfl_down_sync(all, t, 3);
    y[t + 64] = __shfl_up_sync(all, t, 3, 8);
    y[t + 96] = __shfl_sync(all, t, 5, 16);
    y[t + 128] = int(__ballot_sync(all, t % 3 == 0));
    y[t + 160] = __any_sync(all, t == 40) + 2 * __all_sync(all, t < 32);
    y[t + 192] = __reduce_max_sync(all, (t * 7) % 32) + __reduce_add_sync(all, t);
    y[t + 224] = int(__shfl_xor_sync(all, 1e300 * t, 1) / 1e300 + 0.5);
    if (t < 16) y[t + 256] = __shfl_down_sync(0x0000ffffu, t, 1, 16);
}

extern "C" __global__ void votes(int* y) {
    const int t = threadIdx.x;
    y[t] = __syncthreads_count(t % 3 == 0);
    y[t] += 1000 * __syncthreads_or(t == 70) + 2000 * __syncthreads_and(t < 70);
}

extern "C" __global__ void atomics(int* y, unsigned* u, float* f) {
    atomicAdd(&y[0], 2);
    atomicMax(&y[1], int(threadIdx.x));
    atomicMin(&y[2], int(threadIdx.x));
    atomicInc(&u[0], 9u);
    if (atomicCAS(&y[3], 7, int(threadIdx.x)) == 7) atomicExch(&y[4], 1);
    atomicAdd(f, 0.5f);
}

extern "C" __global__ void lockstep(int* y) {  // a warp that shares memory, barrier by barrier
    __shared__ int held[32];
    const int t = threadIdx.x;
    held[t] = t;
    __syncwarp();
    for (int step = 1; step < 32; step *= 2) {
        const int other = t >= step ? held[t - step] : 0;
        __syncwarp();
        held[t] += other;
        __syncwarp(0xffffffffu);
    }
    y[t] = held[t];
}

extern "C" __global__ void last_block(const int* x, int* partial, unsigned* counter, int* total) {
    __shared__ bool last;
    partial[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last || threadIdx.x) return;
    int sum = 0;
    for (int i = 0; i < 32 * gridDim.x; i++) sum += partial[i];
    *total = sum;
}

struct Pair { int first; double second; };

extern "C" __global__ void vectors(const float4* x, float4* y, Pair pair, const int* nothing) {
    float4 a = __ldg(x + threadIdx.x);
    a.x += pair.first;
    a.w += float(pair.second);
    if (!nothing) __stcs(y + threadIdx.x, a);
}
"""


@pytest.fixture(scope="module", params=["fibers", "threads"])
def right(request: pytest.FixtureRequest) -> Iterator[Simt]:
    with Simt(RIGHT, request.param) as simt:
        yield simt


def output(size: int, dtype: Any = np.int32, name: str = "y") -> Buffer:
    return Buffer(name, np.zeros(size, dtype), initialised=False, writable=True)


def test_right_kernels(right: Simt) -> None:
    y, t = output(64), np.arange(64)
    x = Buffer("x", t.astype(np.int32) ** 2)
    right.run([Launch("reverse", (1,), (64,), (x, y))], seed=1)
    assert list(y.array) == list(x.array[::-1])
    right.run([Launch("reverse_dynamic", (1,), (64,), (x, y), shared=256)])
    assert list(y.array) == list(x.array[::-1])

    square = output(200, np.float32)
    values = Buffer("x", np.linspace(-1, 1, 200, dtype=np.float32))
    launch = Launch("squares", (2,), (128,), (values, square, np.int32(200)))
    (traffic,) = right.run([launch], seed=5)
    assert np.array_equal(square.array, values.array**2)
    if right.machine == "fibers":
        assert (traffic["x"].read, traffic["y"].written, traffic["y"].read) == (800, 800, 0)


def test_places(right: Simt) -> None:
    y = output(2 * 3 * 2 * 4 * 5 * 3)
    right.run([Launch("places", (2, 3, 2), (4, 5, 3), (y,))], seed=2)
    wanted = [i % 60 + 100 * (i // 60) for i in range(y.array.size)]
    assert list(y.array) == wanted


def test_warps(right: Simt) -> None:
    y, t = output(272), np.arange(32)
    right.run([Launch("warp", (1,), (32,), (y,))], seed=3)
    rows = y.array[:256].reshape(8, 32)
    assert list(rows[0]) == list(t ^ 16)
    assert list(rows[1]) == [i + 3 if i + 3 < 32 else i for i in t]
    assert list(rows[2]) == [i - 3 if i % 8 >= 3 else i for i in t]
    assert list(rows[3]) == [i // 16 * 16 + 5 for i in t]
    assert set(rows[4]) == {sum(1 << i for i in range(0, 32, 3))}
    assert set(rows[5]) == {2}
    assert set(rows[6]) == {31 + 496}
    assert list(rows[7]) == list(t ^ 1)
    assert list(y.array[256:]) == [*range(1, 16), 15]


def test_blocks(right: Simt) -> None:
    y = output(70)
    right.run([Launch("votes", (1,), (70,), (y,))], seed=4)
    assert set(y.array) == {24 + 2000}
    y = output(32)
    right.run([Launch("lockstep", (1,), (32,), (y,))], seed=6)
    assert list(y.array) == list(np.cumsum(np.arange(32)))


def test_atomics(right: Simt) -> None:
    y = Buffer("y", np.array([0, -5, 99, 7, 0], np.int32), writable=True)
    u = Buffer("u", np.zeros(1, np.uint32), writable=True)
    f = Buffer("f", np.zeros(1, np.float32), writable=True)
    right.run([Launch("atomics", (3,), (33,), (y, u, f))], seed=7)
    assert list(y.array[:3]) == [198, 32, 0]
    assert 0 <= y.array[3] < 33
    assert (y.array[4], u.array[0], f.array[0]) == (1, 9, 49.5)


@pytest.mark.parametrize("seed", range(6))
def test_the_last_block(right: Simt, seed: int) -> None:
    x = Buffer("x", np.arange(160, dtype=np.int32))
    counter, total = Buffer("counter", np.zeros(1, np.uint32), writable=True), output(1)
    right.run([Launch("last_block", (5,), (32,), (x, output(160), counter, total))], seed)
    assert (total.array[0], counter.array[0]) == (159 * 80, 0)


def test_structures_vectors_and_null(right: Simt) -> None:
    x, y = Buffer("x", np.ones(12, np.float32)), output(12, np.float32)
    pair = np.zeros((), np.dtype([("first", "i4"), ("second", "f8")], align=True))
    pair["first"], pair["second"] = 2, 5.0
    right.run([Launch("vectors", (1,), (3,), (x, y, pair, None))])
    assert list(y.array) == [3, 1, 1, 6] * 3


# What is caught. Each kernel is wrong in one way, and called as `wrong<<<2, 64>>>(x, y)`: x has 128
# values that may not be written, and y 128 that nobody wrote.

OUT_OF_BOUNDS = {
    "reads past an array": ("y[threadIdx.x] = x[128 + threadIdx.x];", "outside every array"),
    "reads before an array": (
        "y[threadIdx.x] = x[int(threadIdx.x) - 1];",
        "byte -4 of the 512 of x",
    ),
    "writes past an array": ("y[threadIdx.x * 2 + 2] = 1;", "writes 4 bytes outside every array"),
    "writes an input": ("const_cast<int*>(x)[threadIdx.x] = 1;", "writes x, which is an input"),
    "reads what nobody wrote": ("y[threadIdx.x] = y[threadIdx.x] + 1;", "which nobody wrote"),
    "an index past a shared array": (
        "__shared__ int s[32]; s[threadIdx.x] = 1; y[0] = s[0];",
        "out of bounds for type",
    ),
    "a pointer past a shared array": (
        "__shared__ int s[32]; int* p = s; p += 99999 + threadIdx.x; *p = 1; y[0] = 1;",
        "outside every array",
    ),
    "shared memory that nobody wrote": (
        "__shared__ int s[64]; if (threadIdx.x) s[threadIdx.x] = 1; __syncthreads();"
        "y[threadIdx.x] = s[63 - threadIdx.x];",
        "of s, which nobody wrote",
    ),
    "a misaligned vector": (
        "const int4 a = *reinterpret_cast<const int4*>(x + 4 * threadIdx.x % 8 + 2); y[0] = a.y;",
        "misaligned address",
    ),
    "a misaligned hinted load": (
        "y[0] = __ldcs(reinterpret_cast<const int4*>(x + 2)).x;",
        "a misaligned access of 16 bytes",
    ),
}
SYNCHRONISATION = {
    "a divergent barrier": (
        "if (threadIdx.x < 32)\n__syncthreads();\nelse\n__syncthreads();",
        "a divergent barrier",
    ),
    "a barrier that some do not reach": (
        "if (threadIdx.x < 40) __syncthreads();",
        "a barrier for 64 threads, of which 24 have exited",
    ),
    "a barrier inside a loop of different length": (
        "for (int i = 0; i < 2 - int(threadIdx.x / 63); i++) __syncthreads();",
        "of which 1 have exited",
    ),
    "a mask that names lanes that exited": (
        "if (threadIdx.x % 32 >= 16) return; y[threadIdx.x] = __shfl_down_sync(~0u, 1, 8);",
        "which has exited",
    ),
    "a mask without the caller": (
        "if (threadIdx.x < 32) y[0] = __ballot_sync(0xffffu, 1);",
        "is without the calling lane",
    ),
    "a source outside the mask": (
        "if (threadIdx.x < 16) y[threadIdx.x] = __shfl_down_sync(0xffffu, 1, 16);",
        "outside mask 0xffff",
    ),
    "lanes that are elsewhere": (
        "int a = 1; if (threadIdx.x % 32 < 16)\na = __shfl_xor_sync(~0u, a, 1);\nelse\n"
        "a = __shfl_xor_sync(~0u, a, 2);\ny[threadIdx.x] = a;",
        "deadlock",
    ),
    "lanes at a barrier": (
        "if (threadIdx.x % 32 < 16)\n__syncwarp();\nelse\n__syncthreads();",
        "deadlock",
    ),
}
RACES = {
    "no barrier before reading": (
        "__shared__ int s[64]; s[threadIdx.x] = 1; y[threadIdx.x] = s[63 - threadIdx.x];",
        "of s",
    ),
    "no barrier before writing again": (
        "__shared__ int s[64]; for (int i = 0; i < 2; i++) { s[threadIdx.x] = i; __syncthreads();"
        "if (s[63 - threadIdx.x] > 2) y[0] = 1; }",
        "of s",
    ),
    "a warp without a barrier": (
        "__shared__ int s[64]; const int t = threadIdx.x; s[t] = t; y[t] = s[t ^ 1];",
        "of s",
    ),
    "a shuffle instead of a barrier": (
        "__shared__ int s[64]; const int t = threadIdx.x; s[t] = __shfl_xor_sync(~0u, t, 1);"
        "__shfl_xor_sync(~0u, t, 1); y[t] = s[t ^ 1];",
        "of s",
    ),
    "a warp's barrier for a block": (
        "__shared__ int s[64]; s[threadIdx.x] = 1; __syncwarp();"
        "y[threadIdx.x] = s[63 - threadIdx.x];",
        "of s",
    ),
    "a maximum that is not atomic": (
        "__shared__ int s; s = 0; __syncthreads(); s = max(s, int(threadIdx.x));",
        "of s",
    ),
    "atomic for some": (
        "__shared__ int s; if (threadIdx.x == 0) s = 0; __syncthreads();"
        "if (threadIdx.x % 2) atomicMax(&s, 3); else s = 4;",
        "of s",
    ),
    "blocks that write the same": ("y[threadIdx.x] = 1;", "of another block wrote"),
    "blocks that read each other": (
        "const int i = blockIdx.x * 64 + threadIdx.x; y[i] = 1; if (blockIdx.x) y[i - 64] += 1;",
        "of another block",
    ),
}
LAST_BLOCK = """
    y[blockIdx.x * 64 + threadIdx.x] = 1;
    BARRIER
    __shared__ bool last;
    if (threadIdx.x == 0) {
        RELEASE
        last = atomicAdd(&counter, 1) % 2 == 1;
        ACQUIRE
    }
    __syncthreads();
    if (last) atomicAdd(&counter, y[63 - threadIdx.x] + y[127 - threadIdx.x]);
"""
PARTS = {
    "BARRIER": "__syncthreads();",
    "RELEASE": "__threadfence();",
    "ACQUIRE": "__threadfence();",
}


CASES = {**OUT_OF_BOUNDS, **SYNCHRONISATION, **RACES}


def wrong(body: str, name: str = "wrong") -> str:
    head = f'extern "C" __global__ void {name}(const int* __restrict__ x, int* y) {{'
    return f"{head}\n{dedent(body)}\n}}\n"


def run_wrong(case: str, machine: str, seeds: int) -> None:
    """One of the kernels of a source that has them all."""
    names = {name: f"wrong_{i}" for i, name in enumerate(CASES)}
    with Simt("".join(wrong(CASES[name][0], names[name]) for name in names), machine) as simt:
        for seed in range(seeds):
            arrays = Buffer("x", np.arange(128, dtype=np.int32)), output(128)
            simt.run([Launch(names[case], (2,), (64,), arrays)], seed)


@pytest.mark.parametrize("case", CASES)
def test_caught(case: str) -> None:
    body, message = CASES[case]
    with pytest.raises(SimtError) as caught:
        run_wrong(case, "fibers", seeds=6)
    assert message in str(caught.value)
    if case in RACES:
        assert "a race" in str(caught.value) or "nobody wrote" in str(caught.value)
    if not case.startswith("lanes"):
        assert body.strip().splitlines()[-1][:10] in str(caught.value), "the line is not shown"


@pytest.mark.parametrize("dropped", [None, *PARTS])
def test_the_last_block_needs_each_of_its_parts(dropped: str | None) -> None:
    body = LAST_BLOCK
    for part, statement in PARTS.items():
        body = body.replace(part, "" if part == dropped else statement)
    body = body.replace("counter", "reinterpret_cast<int*>(y)[128]")
    source = wrong(body)

    def run() -> None:
        with Simt(source) as simt:
            for seed in range(6):
                cells = np.zeros(129, np.int32)
                parts = (Part("values", 0, 512, 4), Part("counter", 512, 4, 4))
                y = Buffer("y", cells, writable=True, parts=parts)
                x = Buffer("x", np.zeros(128, np.int32))
                simt.run([Launch("wrong", (2,), (64,), (x, y))], seed)
                assert cells[128] == 130

    if dropped is None:
        run()
    else:
        with pytest.raises(SimtError, match="a race"):
            run()


@pytest.mark.parametrize(
    "case",
    [
        "no barrier before reading",
        "no barrier before writing again",
        "a warp without a barrier",
        "a shuffle instead of a barrier",
        "a warp's barrier for a block",
        "a maximum that is not atomic",
    ],
)
def test_thread_sanitizer_agrees(case: str) -> None:
    """A second opinion, which knows nothing of our own detector, finds the races inside blocks."""
    with pytest.raises(SimtError, match="data race"):
        run_wrong(case, "threads", seeds=3)


def test_no_end() -> None:
    body = "if (blockIdx.x == 0) while (atomicAdd(y + 1, 0) == 0) {} else atomicAdd(y + 1, 1);"
    with Simt(wrong(body), seconds=1) as simt:
        y = Buffer("y", np.zeros(128, np.int32), writable=True)
        launch = Launch("wrong", (2,), (64,), (Buffer("x", np.zeros(1, np.int32)), y))
        with pytest.raises(SimtError, match="no end"):
            simt.run([launch], seed=0)


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (("squares", (0,), (64,)), "an empty grid"),
        (("squares", (1, 70000), (64,)), "which CUDA refuses"),
        (("squares", (1,), (256,)), r"256 threads a block, and __launch_bounds__\(128\)"),
        (("nothing", (1,), (64,)), "no kernel is called nothing"),
    ],
)
def test_launches_that_cuda_refuses(launch: Any, message: str) -> None:
    x, y = Buffer("x", np.zeros(64, np.float32)), output(64, np.float32)
    with Simt(RIGHT) as simt, pytest.raises(SimtError, match=message):
        simt.run([Launch(*launch, (x, y, np.int32(64)))])


@pytest.mark.parametrize("size", [np.int64(64), np.float32(64), None])
def test_arguments_of_another_type(size: Any) -> None:
    x, y = Buffer("x", np.zeros(64, np.float32)), output(64, np.float32)
    with Simt(RIGHT) as simt, pytest.raises(SimtError, match="argument 2 of squares"):
        simt.run([Launch("squares", (1,), (64,), (x, y, size))])
    with Simt(RIGHT) as simt, pytest.raises(SimtError, match="takes 3 arguments, not 2"):
        simt.run([Launch("squares", (1,), (64,), (x, At(y, 0)))])


def test_a_wrong_kernel_leaves_arrays_alone() -> None:
    x, y = Buffer("x", np.zeros(128, np.int32)), output(128)
    with Simt(wrong("y[blockIdx.x * 65 + threadIdx.x] = 1;")) as simt:
        with pytest.raises(SimtError):
            simt.run([Launch("wrong", (2,), (64,), (x, y))])
        assert not y.array.any()
        with pytest.raises(SimtError):  # and it starts again
            simt.run([Launch("wrong", (2,), (64,), (x, y))])


HALVES = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void halves(const float* x, __half* h, __nv_bfloat16* b, float* back, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        h[i] = __float2half_rn(x[i]);
        b[i] = __float2bfloat16_rn(x[i]);
        back[i] = __half2float(h[i]);
        back[n + i] = __bfloat162float(b[i]);
    }
}
"""


def test_half_types_are_those_of_numpy_and_ieee() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 20000, dtype=np.uint64).astype(np.uint32)
    ties = np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000
    near = every[np.isfinite(every)] * 1.0004883
    x = np.concatenate([every, bits.view(np.float32), ties.view(np.float32), near])
    x = x[np.isfinite(x)]
    x = np.concatenate([x, np.float32([np.inf, -np.inf, np.nan, 0.0, -0.0])])
    h, b, back = (
        output(x.size, np.uint16, "h"),
        output(x.size, np.uint16, "b"),
        output(2 * x.size, np.float32, "f"),
    )
    with Simt(HALVES) as simt:
        simt.run([Launch("halves", (1,), (64,), (Buffer("x", x), h, b, back, np.int32(x.size)))])
    with np.errstate(over="ignore"):
        wanted = x.astype(np.float16)
    got = h.array.view(np.float16)
    assert np.array_equal(got, wanted, equal_nan=True)
    assert np.array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(wanted[~np.isnan(wanted)]))
    assert np.array_equal(back.array[: x.size], wanted.astype(np.float32), equal_nan=True)
    found = back.array[x.size :]
    assert np.array_equal(
        found.view(np.uint32) & 0xFFFF, np.where(np.isnan(found), found.view(np.uint32) & 0xFFFF, 0)
    )
    finite = np.isfinite(found)
    spacing = 2.0 ** np.maximum(np.frexp(x[finite].astype(np.float64))[1] - 8, -133)
    assert np.all(np.abs(found[finite] - x[finite].astype(np.float64)) <= spacing / 2)
    even = np.abs(found[finite] - x[finite].astype(np.float64)) == spacing / 2
    assert even.sum() > 1000
    assert not np.any(b.array[finite][even] & 1)
