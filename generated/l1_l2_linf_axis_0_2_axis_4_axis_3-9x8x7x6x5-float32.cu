// l1(l2(linf(axis=(0, 2)), axis=4), axis=3): projects float32 arrays on a GPU.
//
// level 0  l1    of v0: in the middle
// level 1  l2    of v1: in the middle
// level 2  linf  of y: columns (reduced, groups, reduced, groups)
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
    long long total_at, v0_at, u0_at, v1_at, limit_2_at;
    index n0_2, s0_2, t0_2, s1_2, t1_2, n2_2, s2_2, t2_2;
    index n3_2, width_2, tiles_2, size_0, s_b0_0, s_r0_0, groups_1, size_1;
    index s_b0_1, t_b0_1, s_g0_1, t_g0_1, s_r0_1;
};

__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

// One element.
__device__ __forceinline__ float get(const float* from) { return *from; }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }

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

// Sweep 1: the values of the groups of level 2, linf of y.
extern "C" __global__ void __launch_bounds__(256, 4)
aggregate_2(const float* __restrict__ y, unsigned char* __restrict__ work, const Geometry geo)
{
    double* v1 = (double*)(work + geo.v1_at);
    const int across = geo.width_2, beneath = 256 / across;
    const int tx = threadIdx.x % across, ty = threadIdx.x / across;
    const index outer = blockIdx.x / geo.tiles_2, tile = blockIdx.x % geo.tiles_2;
    const index column = (tile * across + tx);

    int a[1] = {0};
    if (column < geo.n3_2) {
        const float* top = y + outer * geo.s1_2 + column;
#pragma unroll 4
        for (index r = ty; r < geo.n0_2 * geo.n2_2; r += beneath) {
            const float value = get(top + r / geo.n2_2 * geo.s0_2 + r % geo.n2_2 * geo.s2_2);
            a[0] = max(a[0], magnitude_bits(value));
        }
    }
    __shared__ int joined[1][256];
#pragma unroll
    for (int k = 0; k < 1; ++k)
        joined[k][threadIdx.x] = a[k];
    for (int half = beneath / 2; half > 0; half /= 2) {
        __syncthreads();
        if (ty < half) {
#pragma unroll
            for (int k = 0; k < 1; ++k)
                joined[k][threadIdx.x] = max(joined[k][threadIdx.x], joined[k][threadIdx.x + half * across]);
        }
    }
    if (ty == 0 && column < geo.n3_2) {
#pragma unroll
        for (int k = 0; k < 1; ++k)
            v1[outer * geo.n3_2 + column + k] = value_of(joined[k][tx]);
    }
}

// Between the sweeps, a block for each batch entry: the levels above, up to the root and back.
extern "C" __global__ void __launch_bounds__(1024, 1)
middle(const double* __restrict__ radii, double radius, unsigned char* __restrict__ work, const Geometry geo)
{
    double* total = (double*)(work + geo.total_at);
    double* v0 = (double*)(work + geo.v0_at);
    double* u0 = (double*)(work + geo.u0_at);
    const double* v1 = (const double*)(work + geo.v1_at);
    float* limit_2 = (float*)(work + geo.limit_2_at);
    const index entry = blockIdx.x;

    // Up: level 1, l2 of v1.
    for (index g = threadIdx.x; g < geo.groups_1; g += blockDim.x) {
        const index group = entry * geo.t_b0_1 + g * geo.t_g0_1;
        const double* first = v1 + entry * geo.s_b0_1 + g * geo.s_g0_1;
        double a = 0.0;
        for (index i = 0; i < geo.size_1; i += 1)
            a += first[i * geo.s_r0_1] * first[i * geo.s_r0_1];
        v0[group] = sqrt(a);
    }
    __syncthreads();

    // Up: level 0, l1 of v0.
    {
        const index group = entry;
        const double* first = v0 + entry * geo.s_b0_0;
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
        const double* first = v0 + entry * geo.s_b0_0;
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
            u0[first - v0 + at] = left;
        }
    }
    __syncthreads();

    // Down: level 1, l2 of v1.
    for (index g = threadIdx.x; g < geo.groups_1; g += blockDim.x) {
        const index group = entry * geo.t_b0_1 + g * geo.t_g0_1;
        const double* first = v1 + entry * geo.s_b0_1 + g * geo.s_g0_1;
        const double value = v0[group];
        const double u = u0[group];
        const double limit = u >= value ? (double)1 : u / value;
        for (index i = 0; i < geo.size_1; i += 1) {
            const index at = i * geo.s_r0_1;
            const double below = first[at], left = below * limit;
            limit_2[first - v1 + at] = left >= below ? infinity((float)0) : down(left);
        }
    }
}

// Sweep 2: project level 2, linf of y.
extern "C" __global__ void __launch_bounds__(256, 4)
project_2(const float* __restrict__ y, float* __restrict__ x, unsigned char* __restrict__ work, const Geometry geo)
{
    const float* limit_2 = (const float*)(work + geo.limit_2_at);
    const int across = geo.width_2, beneath = 256 / across;
    const int tx = threadIdx.x % across, ty = threadIdx.x / across;
    const index outer = blockIdx.x / geo.tiles_2, tile = blockIdx.x % geo.tiles_2;
    const index column = (tile * across + tx);

    if (column >= geo.n3_2)
        return;
    float limit[1];
    bool dead = true;
#pragma unroll
    for (int k = 0; k < 1; ++k) {
        const index g = outer * geo.n3_2 + column + k;
        limit[k] = limit_2[g];
        dead = dead && limit[k] == 0;
    }
    const float* top = y + outer * geo.s1_2 + column;
    float* to = x + outer * geo.t1_2 + column;
#pragma unroll 4
    for (index r = ty; r < geo.n0_2 * geo.n2_2; r += beneath) {
        put(to + r / geo.n2_2 * geo.t0_2 + r % geo.n2_2 * geo.t2_2, dead ? (float)0 : clip(get(top + r / geo.n2_2 * geo.s0_2 + r % geo.n2_2 * geo.s2_2), limit[0]));
    }
}
