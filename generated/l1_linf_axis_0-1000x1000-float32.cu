// l1(linf(axis=0)): projects float32 arrays on a GPU.
//
// level 0  l1    of v0: in the middle
// level 1  linf  of y: columns (reduced, groups)
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
    long long total_at, v0_at, limit_1_at, slots_1_at;
    index n0_1, s0_1, t0_1, n1_1, groups_1, width_1, step_1, slots_1;
    index groups_0, size_0, s_r0_0;
};

__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

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

// Of |x|: their order is that of the magnitudes, with infinity and NaN on top.
__device__ __forceinline__ int magnitude_bits(float x) { return __float_as_int(x) & 0x7fffffff; }
__device__ __forceinline__ double value_of(int bits) { return __int_as_float(bits); }

__device__ __forceinline__ void add(double& sum, double a) { sum += a; }
__device__ __forceinline__ double fold(double sum) { return sum; }

// Into [-limit, limit]; a limit of NaN is kept.
__device__ __forceinline__ float clip(float x, float limit)
{
    return fabsf(x) <= limit ? x : copysignf(limit, x);
}

// Towards zero by the threshold; a threshold of NaN is kept.
__device__ __forceinline__ double shrink(double x, double threshold)
{
    const double a = fabs(x);
    return a < threshold ? 0.0 : copysign(a - threshold, x);
}

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

// Sweep 1: the partial values of the groups of level 1, linf of y.
extern "C" __global__ void __launch_bounds__(256, 4)
aggregate_1(const float* __restrict__ y, unsigned char* __restrict__ work, const Geometry geo)
{
    int* slots_1 = (int*)(work + geo.slots_1_at);
    const int across = geo.width_1, beneath = 256 / across;
    const int tx = threadIdx.x % across, ty = threadIdx.x / across;
    const index tile = blockIdx.x;
    const index column = (tile * across + tx) * 4;
    const index begin = (index)blockIdx.y * geo.step_1, end = min(begin + geo.step_1, geo.n0_1);

    int a[4] = {0, 0, 0, 0};
    if (column < geo.n1_1) {
        const float* top = y + column;
#pragma unroll 4
        for (index r = begin + ty; r < end; r += beneath) {
            const Pack pack = load(top + r * geo.s0_1);
#pragma unroll
            for (int k = 0; k < 4; ++k)
                a[k] = max(a[k], magnitude_bits(pack.at[k]));
        }
    }
    __shared__ int joined[4][256];
#pragma unroll
    for (int k = 0; k < 4; ++k)
        joined[k][threadIdx.x] = a[k];
    for (int half = beneath / 2; half > 0; half /= 2) {
        __syncthreads();
        if (ty < half) {
#pragma unroll
            for (int k = 0; k < 4; ++k)
                joined[k][threadIdx.x] = max(joined[k][threadIdx.x], joined[k][threadIdx.x + half * across]);
        }
    }
    if (ty == 0 && column < geo.n1_1) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
            slots_1[(long long)blockIdx.y * geo.groups_1 + column + k] = joined[k][tx];
    }
}

// Between the sweeps, a block for each batch entry: the levels above, up to the root and back.
extern "C" __global__ void __launch_bounds__(1024, 1)
middle(const double* __restrict__ radii, double radius, unsigned char* __restrict__ work, const Geometry geo)
{
    const int* slots_1 = (const int*)(work + geo.slots_1_at);
    double* total = (double*)(work + geo.total_at);
    double* v0 = (double*)(work + geo.v0_at);
    float* limit_1 = (float*)(work + geo.limit_1_at);
    const index entry = blockIdx.x;

    // The values of level 1, linf of y, from their slots.
    for (index i = threadIdx.x; i < geo.groups_0 * geo.size_0; i += blockDim.x) {
        const index g = i * geo.s_r0_0;
        int a = slots_1[g];
        for (int slot = 1; slot < geo.slots_1; ++slot)
            a = max(a, slots_1[(long long)slot * geo.groups_1 + g]);
        v0[g] = value_of(a);
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
            limit_1[first - v0 + at] = left >= below ? infinity((float)0) : down(left);
        }
    }
}

// Sweep 2: project level 1, linf of y.
extern "C" __global__ void __launch_bounds__(256, 4)
project_1(const float* __restrict__ y, float* __restrict__ x, unsigned char* __restrict__ work, const Geometry geo)
{
    const float* limit_1 = (const float*)(work + geo.limit_1_at);
    const int across = geo.width_1, beneath = 256 / across;
    const int tx = threadIdx.x % across, ty = threadIdx.x / across;
    const index tile = blockIdx.x;
    const index column = (tile * across + tx) * 4;
    const index begin = (index)blockIdx.y * geo.step_1, end = min(begin + geo.step_1, geo.n0_1);

    if (column >= geo.n1_1)
        return;
    float limit[4];
    bool dead = true;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const index g = column + k;
        limit[k] = limit_1[g];
        dead = dead && limit[k] == 0;
    }
    const float* top = y + column;
    float* to = x + column;
#pragma unroll 4
    for (index r = begin + ty; r < end; r += beneath) {
        Pack pack = {};
        if (!dead)
            pack = load(top + r * geo.s0_1);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            pack.at[k] = clip(pack.at[k], limit[k]);
        store(to + r * geo.t0_1, pack);
    }
}
