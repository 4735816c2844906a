// l1(l1(axis=0)): projects float32 arrays on a GPU.
//
// level 0  l1    of v0: in the middle
// level 1  l1    of y: columns (reduced, groups); threshold by tile
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
    long long total_at, v0_at, radius_1_at, slots_1_at;
    index n0_1, s0_1, t0_1, n1_1, s1_1, t1_1, groups_1, width_1;
    index step_1, slots_1, kept_1, groups_0, size_0, s_r0_0;
};

__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

// One element.
__device__ __forceinline__ float get(const float* from) { return *from; }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }

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

__device__ __forceinline__ void add(double& sum, double a) { sum += a; }
__device__ __forceinline__ double fold(double sum) { return sum; }

// Towards zero by the threshold; a threshold of NaN is kept.
__device__ __forceinline__ float shrink(float x, float threshold)
{
    const float a = fabsf(x);
    return a < threshold ? 0.0f : copysignf(a - threshold, x);
}

// Towards zero by the threshold; a threshold of NaN is kept.
__device__ __forceinline__ double shrink(double x, double threshold)
{
    const double a = fabs(x);
    return a < threshold ? 0.0 : copysign(a - threshold, x);
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

// Sweep 1: the partial values of the groups of level 1, l1 of y.
extern "C" __global__ void __launch_bounds__(256, 4)
aggregate_1(const float* __restrict__ y, unsigned char* __restrict__ work, const Geometry geo)
{
    double* slots_1 = (double*)(work + geo.slots_1_at);
    const int across = geo.width_1, beneath = 256 / across;
    const int tx = threadIdx.x % across, ty = threadIdx.x / across;
    const index tile = blockIdx.x;
    const index column = (tile * across + tx);
    const index begin = (index)blockIdx.y * geo.step_1, end = min(begin + geo.step_1, geo.n0_1);

    Sum a[1] = {{0.0f, 0.0f, 1.0f}};
    if (column < geo.n1_1) {
        const float* top = y + column * geo.s1_1;
#pragma unroll 4
        for (index r = begin + ty; r < end; r += beneath) {
            const float value = get(top + r * geo.s0_1);
            add(a[0], fabsf(value));
        }
    }
    __shared__ double joined[1][256];
#pragma unroll
    for (int k = 0; k < 1; ++k)
        joined[k][threadIdx.x] = fold(a[k]);
    for (int half = beneath / 2; half > 0; half /= 2) {
        __syncthreads();
        if (ty < half) {
#pragma unroll
            for (int k = 0; k < 1; ++k)
                joined[k][threadIdx.x] = joined[k][threadIdx.x] + joined[k][threadIdx.x + half * across];
        }
    }
    if (ty == 0 && column < geo.n1_1) {
#pragma unroll
        for (int k = 0; k < 1; ++k)
            slots_1[(long long)blockIdx.y * geo.groups_1 + column + k] = joined[k][tx];
    }
}

// Between the sweeps, a block for each batch entry: the levels above, up to the root and back.
extern "C" __global__ void __launch_bounds__(1024, 1)
middle(const double* __restrict__ radii, double radius, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* slots_1 = (const double*)(work + geo.slots_1_at);
    double* total = (double*)(work + geo.total_at);
    double* v0 = (double*)(work + geo.v0_at);
    double* radius_1 = (double*)(work + geo.radius_1_at);
    const index entry = blockIdx.x;

    // The values of level 1, l1 of y, from their slots.
    for (index i = threadIdx.x; i < geo.groups_0 * geo.size_0; i += blockDim.x) {
        const index g = i * geo.s_r0_0;
        double a = slots_1[g];
        for (int slot = 1; slot < geo.slots_1; ++slot)
            a = a + slots_1[(long long)slot * geo.groups_1 + g];
        v0[g] = a;
    }
    __syncthreads();

    // Up: level 0, l1 of v0.
    {
        const index group = entry;
        const double* first = v0;
        double a = 0.0;
        for (index i = threadIdx.x; i < geo.size_0; i += blockDim.x)
            add(a, fabs(first[i * geo.s_r0_0]));
        const double joined = block_sum(fold(a));
        if (threadIdx.x == 0)
            total[group] = joined;
    }
    __syncthreads();

    // Down: level 0, l1 of v0.
    {
        const index group = entry;
        const double* first = v0;
        const double value = total[group];
        double u = radii ? radii[group] : radius;
        if (!(u >= 0.0 && value < infinity(0.0)))
            u = not_a_number();
        double limit = u >= value ? 0.0 : u <= 0.0 ? infinity(0.0) : u;
        if (u > 0.0 && u < value) {
            double t = fmax((value - u) / geo.size_0, 0.0);
            for (;;) {
                double partial = 0.0;
                index above = 0;
                for (index i = threadIdx.x; i < geo.size_0; i += blockDim.x) {
                    const double a = fabs(first[i * geo.s_r0_0]);
                    if (a > t) {
                        add(partial, a);
                        ++above;
                    }
                }
                const double sum = block_sum(fold(partial));
                above = block_sum(above);
                limit = above > 0 ? (sum - u) / above : t;
                const double next = limit;
                if (!(next > t))
                    break;
                t = next;
            }
        }
        for (index i = threadIdx.x; i < geo.size_0; i += blockDim.x) {
            const index at = i * geo.s_r0_0;
            const double below = first[at], left = shrink(below, limit);
            radius_1[first - v0 + at] = left;
        }
    }
}

// Sweep 2: project level 1, l1 of y.
extern "C" __global__ void __launch_bounds__(256, 4)
project_1(const float* __restrict__ y, float* __restrict__ x, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* v0 = (const double*)(work + geo.v0_at);
    const double* radius_1 = (const double*)(work + geo.radius_1_at);
    __shared__ float kept[6912];
    __shared__ double sums[256];
    __shared__ int counts[256];
    __shared__ float limits[256];
    const int columns = geo.kept_1;
    const index begin = (index)blockIdx.x * columns;
    const index rows = geo.n0_1;
    const int across = columns, beneath = 256 / across;
    const int tx = threadIdx.x % across, ty = threadIdx.x / across;
    const index column = begin + tx;
    const float* top = y + column * geo.s1_1;
    if (column < geo.n1_1) {
#pragma unroll 4
        for (index r = ty; r < rows; r += beneath) {
            kept[r * columns + tx] = get(top + r * geo.s0_1);
        }
    }

    const int c = threadIdx.x % columns, part = threadIdx.x / columns, parts = 256 / columns;
    double u = 0.0, limit = 0.0;
    float t = 0;
    bool open = false;
    if (begin + c < geo.n1_1) {
        const index g = begin + c;
        const double value = v0[g];
        u = radius_1[g];
        limit = u >= value ? 0.0 : u <= 0.0 ? infinity(0.0) : u;
        open = u > 0.0 && u < value;
        if (open)
            t = down(fmax((value - u) / rows, 0.0));
    }
    while (__syncthreads_or(open)) {
        if (open) {
            Sum partial = {0.0f, 0.0f, 1.0f};
            int above = 0;
            for (index r = part; r < rows; r += parts) {
                const float a = fabsf(kept[r * columns + c]);
                if (a > t) {
                    add(partial, a);
                    ++above;
                }
            }
            sums[threadIdx.x] = fold(partial);
            counts[threadIdx.x] = above;
        }
        __syncthreads();
        if (open) {
            double sum = 0.0;
            int above = 0;
            for (int p = 0; p < parts; ++p) {
                sum += sums[p * columns + c];
                above += counts[p * columns + c];
            }
            limit = above > 0 ? (sum - u) / above : t;
            const float next = down(limit);
            open = next > t;
            if (open)
                t = next;
        }
    }
    if (part == 0)
        limits[c] = up(limit);
    __syncthreads();

    if (column >= geo.n1_1)
        return;
    float* to = x + column * geo.t1_1;
#pragma unroll 4
    for (index r = ty; r < rows; r += beneath) {
        put(to + r * geo.t0_1, shrink(kept[r * columns + tx], limits[tx]));
    }
}
