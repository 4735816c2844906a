// l1(axis=1): projects float32 arrays on a GPU.
//
// level 0  l1    of y: rows (groups, reduced); threshold by row
//
// Sweep 1 reads y once and aggregates the values of its groups; sweep 2 reads it once more and
// writes x. Levels count from the root: v0 holds the values of level 1's groups. Values,
// radii and limits lie in the workspace `work`, of which nothing has to be initialised. The
// functions of a call run on one stream, in the order in which they stand here. Partial values are
// always joined in the same order, so results are equal to the bit. A batch entry that has a NaN
// or an infinity becomes NaN. Written by projgen, codegen 1.

typedef int index;

constexpr unsigned WARP = 0xffffffffu;  // all its lanes

// Where each part of the workspace begins, in bytes; extents n and steps s (in x: t) of each level's
// loops, outermost first.
struct Geometry {
    long long total_at;
    index s0_0, t0_0, n1_0, size_0;
};

__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

// One element.
__device__ __forceinline__ float get(const float* from) { return *from; }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }

// 4 adjacent elements: one access of 16 bytes.
struct Pack {
    float at[4];
};

__device__ __forceinline__ Pack load(const float* from)
{
    const float4 a = *(const float4*)from;
    return {a.x, a.y, a.z, a.w};
}

// Past the caches, where nobody looks for x soon; else the compiler may split it up.
__device__ __forceinline__ void store(float* to, const Pack& a)
{
    __stcs((float4*)to, make_float4(a.at[0], a.at[1], a.at[2], a.at[3]));
}

// How many elements of a row lie before its first whole access.
__device__ __forceinline__ index before_access(const float* row)
{
    return (index)(-((long long)row / (long long)sizeof(*row)) & 3);
}

// A sum of nonnegative floats in two of them, exact to about 48 bits, and without float64.
// What is added is scaled by a power of two, which shrinks when values grow, so that nothing
// overflows.
struct Sum {
    float high, low, scale;
};

__device__ __forceinline__ void carry(Sum& sum, float a)
{
    const float total = __fadd_rn(sum.high, a);
    const float part = __fsub_rn(total, sum.high);
    const float lost = __fadd_rn(__fsub_rn(sum.high, __fsub_rn(total, part)), __fsub_rn(a, part));
    sum.high = total;
    sum.low = __fadd_rn(sum.low, lost);
}

// Add a magnitude.
__device__ __forceinline__ void add(Sum& sum, float a)
{
    float scaled = a * sum.scale;
    if (scaled > 0x1p64f) {
        scaled *= 0x1p-64f;
        sum.high *= 0x1p-64f;
        sum.low *= 0x1p-64f;
        sum.scale *= 0x1p-64f;
    }
    carry(sum, scaled);
}

__device__ __forceinline__ double fold(const Sum& sum)
{
    const double total = (double)sum.high + (double)sum.low;
    return total / (double)sum.scale;
}

// Towards zero by the threshold; a threshold of NaN is kept.
__device__ __forceinline__ float shrink(float x, float threshold)
{
    const float a = fabsf(x);
    return a < threshold ? 0.0f : copysignf(a - threshold, x);
}

// The float next to x that is not below it.
__device__ __forceinline__ float up(double x) { return __double2float_ru(x); }

// The float next to x that is not above it.
__device__ __forceinline__ float down(double x) { return __double2float_rd(x); }

// Over the threads of a warp, and of a block, in a fixed order: all of them have the result.
__device__ __forceinline__ double warp_sum(double a)
{
    for (int away = 16; away > 0; away /= 2)
        a = a + __shfl_xor_sync(WARP, a, away);
    return a;
}

__device__ __forceinline__ double block_sum(double a)
{
    __shared__ double parts[32];
    a = warp_sum(a);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = a;
    __syncthreads();
    double total = parts[0];
    for (int i = 1; i < (int)blockDim.x / 32; ++i)
        total = total + parts[i];
    __syncthreads();  // the next join may overwrite the parts
    return total;
}

// Over the threads of a warp, and of a block, in a fixed order: all of them have the result.
__device__ __forceinline__ index warp_sum(index a)
{
    for (int away = 16; away > 0; away /= 2)
        a = a + __shfl_xor_sync(WARP, a, away);
    return a;
}

__device__ __forceinline__ index block_sum(index a)
{
    __shared__ index parts[32];
    a = warp_sum(a);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = a;
    __syncthreads();
    index total = parts[0];
    for (int i = 1; i < (int)blockDim.x / 32; ++i)
        total = total + parts[i];
    __syncthreads();  // the next join may overwrite the parts
    return total;
}

// Sweep 1: the values of the groups of level 0, l1 of y.
extern "C" __global__ void __launch_bounds__(256, 4)
aggregate_0(const float* __restrict__ y, unsigned char* __restrict__ work, const Geometry geo)
{
    double* total = (double*)(work + geo.total_at);
    const int lane = threadIdx.x;
    const index g = blockIdx.x;
    Sum a = {0.0f, 0.0f, 1.0f};
    const index count = geo.n1_0;
    constexpr int across = 256;
    const int along = lane;
    const float* row = y + g * geo.s0_0;
    const index head = min(count, before_access(row)), packs = (count - head) / 4;
    for (index i = along; i < head; i += across)
        add(a, fabsf(get(row + i)));
#pragma unroll 4
    for (index i = along; i < packs; i += across) {
        const Pack pack = load(row + head + 4 * i);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            add(a, fabsf(pack.at[k]));
    }
    for (index i = head + 4 * packs + along; i < count; i += across)
        add(a, fabsf(get(row + i)));
    const double joined = block_sum(fold(a));
    if (lane == 0)
        total[g] = joined;
}

// Sweep 2: project level 0, l1 of y.
extern "C" __global__ void __launch_bounds__(256, 4)
project_0(const float* __restrict__ y, float* __restrict__ x, const double* __restrict__ radii, double radius, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* total = (const double*)(work + geo.total_at);
    const int lane = threadIdx.x;
    const index g = blockIdx.x;
    const double value = total[g];
    double u = radii ? radii[g] : radius;
    if (!(u >= 0.0 && value < infinity(0.0)))
        u = not_a_number();
    const bool dead = u <= 0.0 && u < value;
    __shared__ float memory[6912];
    float* kept = memory;
    if (!dead) {
        const index count = geo.n1_0;
        constexpr int across = 256;
        const int along = lane;
        const float* row = y + g * geo.s0_0;
        float* kept_row = kept;
        const index head = min(count, before_access(row)), packs = (count - head) / 4;
        for (index i = along; i < head; i += across)
            kept_row[i] = get(row + i);
    #pragma unroll 4
        for (index i = along; i < packs; i += across) {
            const Pack pack = load(row + head + 4 * i);
    #pragma unroll
            for (int k = 0; k < 4; ++k)
                kept_row[head + 4 * i + k] = pack.at[k];
        }
        for (index i = head + 4 * packs + along; i < count; i += across)
            kept_row[i] = get(row + i);
    }
    __syncthreads();
    double threshold = u >= value ? 0.0 : u <= 0.0 ? infinity(0.0) : u;
    if (u > 0.0 && u < value) {
        double& limit = threshold;
        float t = down(fmax((value - u) / geo.size_0, 0.0));
        for (;;) {
            Sum partial = {0.0f, 0.0f, 1.0f};
            index above = 0;
            for (index i = lane; i < geo.size_0; i += 256) {
                const float a = fabsf(kept[i]);
                if (a > t) {
                    add(partial, a);
                    ++above;
                }
            }
            const double sum = block_sum(fold(partial));
            above = block_sum(above);
            limit = above > 0 ? (sum - u) / above : t;
            const float next = down(limit);
            if (!(next > t))
                break;
            t = next;
        }
    }
    const float limit = up(threshold);
    {
        const index count = geo.n1_0;
        constexpr int across = 256;
        const int along = lane;
        const float* row = y + g * geo.s0_0;
        float* target = x + g * geo.t0_0;
        const float* kept_row = kept;
        const index head = min(count, before_access(row)), packs = (count - head) / 4;
        for (index i = along; i < head; i += across)
            put(target + i, dead ? (float)0 : shrink(kept_row[i], limit));
    #pragma unroll 4
        for (index i = along; i < packs; i += across) {
            Pack pack = {};
    #pragma unroll
            for (int k = 0; k < 4; ++k)
                pack.at[k] = dead ? (float)0 : shrink(kept_row[head + 4 * i + k], limit);
            store(target + head + 4 * i, pack);
        }
        for (index i = head + 4 * packs + along; i < count; i += across)
            put(target + i, dead ? (float)0 : shrink(kept_row[i], limit));
    }
}
