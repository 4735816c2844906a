// l2(l1(axis=0)): takes gradients back through the projection of float16 arrays on a GPU.
//
// level 0  l2    of v0: in the middle
// level 1  l1    of y: columns (reduced, groups)
//
// Sweep 1 reads the arrays once and sums the gradients of the radii, from the leaf up to the root;
// sweep 2 reads them once more and writes those of the values, from the root down. y, its projection
// x and their gradients dy and dx lie in memory alike. `tape` is the workspace that the projection
// left, with values v, radii and limits. In `work`, of which nothing has to be initialised, h has
// gradients of radii. The functions of a call run on one stream, in the order in which they
// stand here. Sums are always joined in the same order, so results are equal to the bit. A batch
// entry that has a NaN or an infinity gets NaN. Written by projgen, codegen 1.

#include <cuda_fp16.h>

typedef int index;

constexpr unsigned WARP = 0xffffffffu;  // all its lanes

// Where each part of the tape and the workspace begins, in bytes; extents n and steps s of each level's
// loops, outermost first.
struct Geometry {
    long long total_at, v0_at, radius_1_at, slope_at, h0_at;
    long long floor_1_at, mean_1_at, lift_1_at, part_1_at, sums_1_at;
    long long counts_1_at;
    index n0_1, s0_1, n1_1, groups_1, width_1, step_1, slots_1, groups_0;
    index size_0, s_r0_0;
};

__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

__device__ __forceinline__ float widen(unsigned bits)
{
    return __half2float(__ushort_as_half((unsigned short)bits));
}

__device__ __forceinline__ unsigned narrow(float x)
{
    return __half_as_ushort(__float2half_rn(x));
}

// 8 adjacent elements: one access of 16 bytes.
struct Pack {
    float at[8];
};

__device__ __forceinline__ Pack load(const __half* from)
{
    const uint4 a = *(const uint4*)from;
    return {widen(a.x & 0xffffu), widen(a.x >> 16), widen(a.y & 0xffffu), widen(a.y >> 16),
            widen(a.z & 0xffffu), widen(a.z >> 16), widen(a.w & 0xffffu), widen(a.w >> 16)};
}

// Past the caches, where nobody looks for x soon; else the compiler may split it up.
__device__ __forceinline__ void store(__half* to, const Pack& a)
{
    __stcs((uint4*)to, make_uint4(narrow(a.at[0]) | narrow(a.at[1]) << 16, narrow(a.at[2]) | narrow(a.at[3]) << 16,
                                  narrow(a.at[4]) | narrow(a.at[5]) << 16, narrow(a.at[6]) | narrow(a.at[7]) << 16));
}

// A pack for the last time; else the compiler may split it up, where not all of it is needed.
__device__ __forceinline__ Pack load_last(const __half* from)
{
    const uint4 a = __ldcs((const uint4*)from);
    return {widen(a.x & 0xffffu), widen(a.x >> 16), widen(a.y & 0xffffu), widen(a.y >> 16),
            widen(a.z & 0xffffu), widen(a.z >> 16), widen(a.w & 0xffffu), widen(a.w >> 16)};
}

// Add a gradient.
__device__ __forceinline__ void add(double& sum, double a) { sum += a; }

// Add a gradient.
__device__ __forceinline__ void add(float& sum, float a) { sum += a; }
__device__ __forceinline__ double fold(float sum) { return sum; }

// A gradient in the direction in which the magnitude of y grows.
__device__ __forceinline__ float toward(float y, float g) { return y < 0 ? -g : g; }

// A power of two near 1 / value.
__device__ __forceinline__ double unit_of(double value, double)
{
    const int exponent = (int)(__double_as_longlong(value) >> 52 & 0x7ff) - 1023;
    return __longlong_as_double((long long)min(max(1023 - exponent, 1), 2046) << 52);
}

// What a value of y hands to the radius of its group.
__device__ __forceinline__ float to_radius(float x, float dx)
{
    return x != 0 ? toward(x, dx) : 0.0f;
}

// The gradient of a value of y.
// Values of x above `floor` survive: they get their gradient less its `mean`. `lift` rises to each.
// Of a group of zeros `part` would be left, if it grew a little; of others it is 1.
__device__ __forceinline__ float to_value(float y, float x, float dx, float floor, float mean, float lift, float part)
{
    return (!(fabsf(x) <= floor) ? part * dx - toward(x, mean) : 0.0f) + (y != 0 ? toward(y, lift) : 0.0f);
}

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

// Sweep 1: partial sums for the gradients of the radii of level 1, l1 of y.
extern "C" __global__ void __launch_bounds__(256, 4)
gather_1(const __half* __restrict__ x, const __half* __restrict__ dx, unsigned char* __restrict__ work, const Geometry geo)
{
    double* sums_1 = (double*)(work + geo.sums_1_at);
    index* counts_1 = (index*)(work + geo.counts_1_at);
    const int across = geo.width_1, beneath = 256 / across;
    const int tx = threadIdx.x % across, ty = threadIdx.x / across;
    const index tile = blockIdx.x;
    const index column = (tile * across + tx) * 8;
    const index begin = (index)blockIdx.y * geo.step_1, end = min(begin + geo.step_1, geo.n0_1);

    float a[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    index n[8] = {};
    if (column < geo.n1_1) {
        const index first = column;
#pragma unroll 2
        for (index r = begin + ty; r < end; r += beneath) {
            const Pack x_pack = load(x + first + r * geo.s0_1), dx_pack = load(dx + first + r * geo.s0_1);
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                add(a[k], to_radius(x_pack.at[k], dx_pack.at[k]));
                n[k] += x_pack.at[k] != 0;
            }
        }
    }
    __shared__ double sums[8][256];
    __shared__ index counts[8][256];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        sums[k][threadIdx.x] = fold(a[k]);
        counts[k][threadIdx.x] = n[k];
    }
    for (int half = beneath / 2; half > 0; half /= 2) {
        __syncthreads();
        if (ty < half) {
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                sums[k][threadIdx.x] += sums[k][threadIdx.x + half * across];
                counts[k][threadIdx.x] += counts[k][threadIdx.x + half * across];
            }
        }
    }
    if (ty == 0 && column < geo.n1_1) {
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            sums_1[(long long)blockIdx.y * geo.groups_1 + column + k] = sums[k][tx];
            counts_1[(long long)blockIdx.y * geo.groups_1 + column + k] = counts[k][tx];
        }
    }
}

// Between the sweeps, a block for each batch entry: the levels above, up to the root and back.
extern "C" __global__ void __launch_bounds__(1024, 1)
middle(const double* __restrict__ radii, double radius, const unsigned char* __restrict__ tape, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* total = (const double*)(tape + geo.total_at);
    double* slope = (double*)(work + geo.slope_at);
    const double* v0 = (const double*)(tape + geo.v0_at);
    const double* radius_1 = (const double*)(tape + geo.radius_1_at);
    double* h0 = (double*)(work + geo.h0_at);
    const double* sums_1 = (const double*)(work + geo.sums_1_at);
    const index* counts_1 = (const index*)(work + geo.counts_1_at);
    float* floor_1 = (float*)(work + geo.floor_1_at);
    float* mean_1 = (float*)(work + geo.mean_1_at);
    float* lift_1 = (float*)(work + geo.lift_1_at);
    float* part_1 = (float*)(work + geo.part_1_at);
    const index entry = blockIdx.x;

    // The gradients of the radii of level 1, l1 of y, from their slots.
    for (index i = threadIdx.x; i < geo.groups_0 * geo.size_0; i += blockDim.x) {
        const index g = i * geo.s_r0_0;
        double a = 0.0;
        index n = 0;
        for (int slot = 0; slot < geo.slots_1; ++slot) {
            a += sums_1[(long long)slot * geo.groups_1 + g];
            n += counts_1[(long long)slot * geo.groups_1 + g];
        }
        const double value = v0[g];
        const double limit = radius_1[g];
        const double gained = limit > 0.0 && limit < value ? a / max(n, (index)1) : limit == limit ? 0.0 : limit;
        h0[g] = gained;
    }
    __syncthreads();

    // Up: level 0, l2 of v0.
    {
        const index group = entry;
        const double* first = v0;
        const double value = total[group];
        double u = radii ? radii[group] : radius;
        if (!(u >= 0.0 && value < infinity(0.0)))
            u = not_a_number();
        const double limit = u >= value ? (double)1 : u / value;
        double a = 0.0;
        const double unit = unit_of(value, (double)0);
        for (index i = threadIdx.x; i < geo.size_0; i += blockDim.x) {
            const index at = first - v0 + i * geo.s_r0_0;
            const double below = v0[at];
            const double gradient = h0[at];
            add(a, below * unit * gradient);
        }
        a = block_sum(a);
        if (threadIdx.x == 0) {
            const double gained = limit > 0 && limit < 1 ? a / (value * unit_of(value, (double)0)) : limit == limit ? 0.0 : limit;
            slope[group] = gained;
        }
    }
    __syncthreads();

    // Down: level 0, l2 of v0.
    {
        const index group = entry;
        const double* first = v0;
        const double value = total[group];
        double u = radii ? radii[group] : radius;
        if (!(u >= 0.0 && value < infinity(0.0)))
            u = not_a_number();
        const double limit = u >= value ? (double)1 : u / value;
        const double rise = value == 0.0 && u > 0.0;
        const double unit = unit_of(value, (double)0);
        const double scale = value == 0.0 ? rise : limit;
        const double tilt = value == 0.0 ? 0.0 : (-limit * slope[group]) / (value * unit_of(value, (double)0));
        const double kept = value == 0.0 ? rise : limit;
        for (index i = threadIdx.x; i < geo.size_0; i += blockDim.x) {
            const index at = first - v0 + i * geo.s_r0_0;
            const double below = v0[at];
            const double left = radius_1[at];
            const double gradient = h0[at];
            const double rose = below > 0.0 ? gradient * scale + below * unit * tilt : kept;
            floor_1[at] = left >= below && (below > 0.0 || rose > 0.0) ? -1 : left <= 0.0 ? infinity((float)0) : 0;
            mean_1[at] = gradient;
            lift_1[at] = rose;
            part_1[at] = below == 0.0 ? rose : 1.0;
        }
    }
}

// Sweep 2: the gradients of the values of level 1, l1 of y.
extern "C" __global__ void __launch_bounds__(256, 4)
share_1(const __half* __restrict__ y, const __half* __restrict__ x, const __half* __restrict__ dx, __half* __restrict__ dy, unsigned char* __restrict__ work, const Geometry geo)
{
    const float* floor_1 = (const float*)(work + geo.floor_1_at);
    const float* mean_1 = (const float*)(work + geo.mean_1_at);
    const float* lift_1 = (const float*)(work + geo.lift_1_at);
    const float* part_1 = (const float*)(work + geo.part_1_at);
    const int across = geo.width_1, beneath = 256 / across;
    const int tx = threadIdx.x % across, ty = threadIdx.x / across;
    const index tile = blockIdx.x;
    const index column = (tile * across + tx) * 8;
    const index begin = (index)blockIdx.y * geo.step_1, end = min(begin + geo.step_1, geo.n0_1);

    if (column >= geo.n1_1)
        return;
    float floors[8];
    float means[8];
    float lifts[8];
    float parts[8];
    bool dead = true;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const index g = column + k;
        floors[k] = floor_1[g];
        means[k] = mean_1[g];
        lifts[k] = lift_1[g];
        parts[k] = part_1[g];
        dead = dead && floors[k] == infinity((float)0) && lifts[k] == 0;
    }
    const index first = column;
    if (dead) {
        for (index r = begin + ty; r < end; r += beneath)
            store(dy + first + r * geo.s0_1, Pack());
        return;
    }
#pragma unroll 2
    for (index r = begin + ty; r < end; r += beneath) {
        const index at = first + r * geo.s0_1;
        Pack result;
        const Pack y_pack = load_last(y + at), x_pack = load_last(x + at), dx_pack = load_last(dx + at);
#pragma unroll
        for (int k = 0; k < 8; ++k)
            result.at[k] = to_value(y_pack.at[k], x_pack.at[k], dx_pack.at[k], floors[k], means[k], lifts[k], parts[k]);
        store(dy + at, result);
    }
}
