// l1(linf): projects float32 arrays on a GPU.
//
// level 0  l1    of v0: rows (reduced); threshold by sweep
// level 1  linf  of y: packed (groups, reduced)
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
    long long total_at, v0_at, limit_1_at, slots_0_at, limit_0_at;
    long long guess_0_at, sums_0_at, counts_0_at;
    index n0_0, s0_0, groups_0, size_0, pieces_0, step_0, slots_0, n0_1;
};

__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

// One element.
__device__ __forceinline__ float get(const float* from) { return *from; }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ double get(const double* from) { return *from; }

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

// Add a magnitude to the sum, and to the number, of those above a threshold.
__device__ __forceinline__ void add_above(double& sum, index& above, double x, double threshold)
{
    const double a = fabs(x);
    if (a > threshold) {
        add(sum, a);
        ++above;
    }
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

// Sweep 1: the values of the groups of level 1, linf of y.
extern "C" __global__ void __launch_bounds__(128, 8)
aggregate_1(const float* __restrict__ y, unsigned char* __restrict__ work, const Geometry geo)
{
    double* v0 = (double*)(work + geo.v0_at);
    const index begin = (index)blockIdx.x * 128;
    const int groups = (int)min((index)128, geo.n0_1 - begin), count = groups * 9;
    const float* from = y + begin * 9;
    __shared__ float tile[1152];
    for (int i = threadIdx.x; i < count / 4; i += 128) {
        const Pack pack = load(from + 4 * i);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            tile[(4 * i + k)] = pack.at[k];
    }
    for (int i = count / 4 * 4 + threadIdx.x; i < count; i += 128)
        tile[i] = get(from + i);
    __syncthreads();
    if (threadIdx.x < groups) {
        int a = 0;
#pragma unroll
        for (int i = 0; i < 9; ++i)
            a = max(a, magnitude_bits(tile[threadIdx.x * 9 + i]));
        const int joined = a;
        v0[begin + threadIdx.x] = value_of(joined);
    }
}

// Sweep 1: the partial values of the groups of level 0, l1 of v0.
extern "C" __global__ void __launch_bounds__(256, 4)
aggregate_0(unsigned char* __restrict__ work, const Geometry geo)
{
    const double* v0 = (const double*)(work + geo.v0_at);
    double* slots_0 = (double*)(work + geo.slots_0_at);
    const int lane = threadIdx.x;
    const index g = blockIdx.x;
    double a = 0.0;
    const index begin = (index)blockIdx.y * geo.step_0, end = min(begin + geo.step_0, geo.n0_0);
    const index count = end - begin;
    constexpr int across = 256;
    const int along = lane;
    const double* row = v0 + begin;
#pragma unroll 4
    for (index i = along; i < count; i += across) {
        const double value = get(row + i);
        add(a, fabs(value));
    }
    const double joined = block_sum(fold(a));
    if (lane == 0)
        slots_0[(long long)blockIdx.y * geo.groups_0 + g] = joined;
}

// The values of the groups of level 0, l1 of v0, from their slots.
extern "C" __global__ void __launch_bounds__(256, 4)
combine_0(unsigned char* __restrict__ work, const Geometry geo)
{
    const double* slots_0 = (const double*)(work + geo.slots_0_at);
    double* total = (double*)(work + geo.total_at);
    const index g = (index)blockIdx.x * 256 + threadIdx.x;
    if (g >= geo.groups_0)
        return;
    double a = slots_0[g];
    for (int slot = 1; slot < geo.slots_0; ++slot)
        a = a + slots_0[(long long)slot * geo.groups_0 + g];
    total[g] = a;
}

// A first guess at the thresholds of level 0, l1 of v0: those of samples. A guess of -1 stands for a
// threshold that is settled.
extern "C" __global__ void __launch_bounds__(256, 4)
start_0(const double* __restrict__ radii, double radius, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* v0 = (const double*)(work + geo.v0_at);
    const double* total = (const double*)(work + geo.total_at);
    double* limit_0 = (double*)(work + geo.limit_0_at);
    double* guess_0 = (double*)(work + geo.guess_0_at);
    const index g = blockIdx.x;
    const double value = total[g];
    double u = radii ? radii[g] : radius;
    if (!(u >= 0.0 && value < infinity(0.0)))
        u = not_a_number();
    if (!(u > 0.0 && u < value)) {
        if (threadIdx.x == 0) {
            limit_0[g] = (double)(u >= value ? 0.0 : u <= 0.0 ? infinity(0.0) : u);
            guess_0[g] = -1;
        }
        return;
    }

    __shared__ double sample[2048];
    const index taken = min(geo.size_0, (index)2048), step = geo.size_0 / taken;
    const double* first = v0;
    for (index i = threadIdx.x; i < taken; i += 256) {
        const index r = i * step;
        sample[i] = get(first + r * geo.s0_0);
    }
    __syncthreads();
    double a = 0.0;
    for (index i = threadIdx.x; i < taken; i += 256)
        add(a, fabs(sample[i]));
    const double sampled = block_sum(fold(a)), share = u / geo.size_0 * taken;
    double limit = 0.0;
    if (share < sampled) {
        double t = fmax((sampled - share) / taken, 0.0);
        for (;;) {
            double partial = 0.0;
            index above = 0;
            for (index i = threadIdx.x; i < taken; i += 256) {
                const double a = fabs(sample[i]);
                if (a > t) {
                    add(partial, a);
                    ++above;
                }
            }
            const double sum = block_sum(fold(partial));
            above = block_sum(above);
            limit = above > 0 ? (sum - share) / above : t;
            const double next = limit;
            if (!(next > t))
                break;
            t = next;
        }
    }
    const double least = fmax((value - u) / geo.size_0, 0.0);  // it is not below
    if (threadIdx.x == 0)
        guess_0[g] = fmax(limit, least);
}

// A turn: the sums and the numbers of the values above the thresholds that the last turn led to.
extern "C" __global__ void __launch_bounds__(256, 4)
above_0(const double* __restrict__ radii, double radius, unsigned char* __restrict__ work, const Geometry geo, int turn)
{
    const double* v0 = (const double*)(work + geo.v0_at);
    const double* total = (const double*)(work + geo.total_at);
    double* limit_0 = (double*)(work + geo.limit_0_at);
    double* guess_0 = (double*)(work + geo.guess_0_at);
    double* sums_0 = (double*)(work + geo.sums_0_at);
    index* counts_0 = (index*)(work + geo.counts_0_at);
    const int lane = threadIdx.x;
    const index g = blockIdx.x;
    double t;
    if (turn > 0) {
        t = guess_0[(turn - 1) * geo.groups_0 + g];
        if (t >= 0) {
            const double value = total[g];
            double u = radii ? radii[g] : radius;
            if (!(u >= 0.0 && value < infinity(0.0)))
                u = not_a_number();
            const long long last = (turn - 1) % 2 * (long long)geo.pieces_0 * geo.groups_0 + g;
            double sum = 0.0;
            index above = 0;
            for (int p = threadIdx.x % 32; p < geo.pieces_0; p += 32) {
                sum += sums_0[last + (long long)p * geo.groups_0];
                above += counts_0[last + (long long)p * geo.groups_0];
            }
            sum = warp_sum(sum);
            above = warp_sum(above);
            // The first guess may have been too high, even for all values.
            const double least = (value - u) / geo.size_0;
            const double limit = above > 0 ? fmax((sum - u) / above, least) : least;
            const double next = limit;
            const bool settled = turn == 1 ? next == t : !(next > t);
            t = settled ? -1 : next;
            if (settled && blockIdx.y == 0 && lane == 0)
                limit_0[g] = limit;
        }
        if (blockIdx.y == 0 && lane == 0)
            guess_0[turn * geo.groups_0 + g] = t;
    } else {
        t = guess_0[g];
    }
    if (t < 0)
        return;
    double partial = 0.0;
    index above = 0;
    const index begin = (index)blockIdx.y * geo.step_0, end = min(begin + geo.step_0, geo.n0_0);
    const index count = end - begin;
    constexpr int across = 256;
    const int along = lane;
    const double* row = v0 + begin;
#pragma unroll 4
    for (index i = along; i < count; i += across)
        add_above(partial, above, get(row + i), t);
    const double sum = block_sum(fold(partial));
    above = block_sum(above);
    if (lane == 0) {
        const long long at = (turn % 2 * geo.pieces_0 + (long long)blockIdx.y) * geo.groups_0 + g;
        sums_0[at] = sum;
        counts_0[at] = above;
    }
}

// The thresholds that the last turn has not settled.
extern "C" __global__ void __launch_bounds__(256, 4)
finish_0(const double* __restrict__ radii, double radius, unsigned char* __restrict__ work, const Geometry geo, int turn)
{
    const double* v0 = (const double*)(work + geo.v0_at);
    const double* total = (const double*)(work + geo.total_at);
    double* limit_0 = (double*)(work + geo.limit_0_at);
    double* guess_0 = (double*)(work + geo.guess_0_at);
    const double* sums_0 = (const double*)(work + geo.sums_0_at);
    const index* counts_0 = (const index*)(work + geo.counts_0_at);
    const index g = blockIdx.x;
    double t;
    t = guess_0[(turn - 1) * geo.groups_0 + g];
    if (t >= 0) {
        const double value = total[g];
        double u = radii ? radii[g] : radius;
        if (!(u >= 0.0 && value < infinity(0.0)))
            u = not_a_number();
        const long long last = (turn - 1) % 2 * (long long)geo.pieces_0 * geo.groups_0 + g;
        double sum = 0.0;
        index above = 0;
        for (int p = threadIdx.x % 32; p < geo.pieces_0; p += 32) {
            sum += sums_0[last + (long long)p * geo.groups_0];
            above += counts_0[last + (long long)p * geo.groups_0];
        }
        sum = warp_sum(sum);
        above = warp_sum(above);
        // The first guess may have been too high, even for all values.
        const double least = (value - u) / geo.size_0;
        const double limit = above > 0 ? fmax((sum - u) / above, least) : least;
        const double next = limit;
        const bool settled = turn == 1 ? next == t : !(next > t);
        t = settled ? -1 : next;
        if (settled && threadIdx.x == 0)
            limit_0[g] = limit;
    }
    if (threadIdx.x == 0)
        guess_0[turn * geo.groups_0 + g] = t;
    if (t < 0)
        return;

    // Long searches are rare: a block ends each.
    const double value = total[g];
    double u = radii ? radii[g] : radius;
    if (!(u >= 0.0 && value < infinity(0.0)))
        u = not_a_number();
    const double* first = v0;
    double limit;
    for (;;) {
        double partial = 0.0;
        index above = 0;
        for (index i = threadIdx.x; i < geo.size_0; i += 256) {
            const double a = fabs(get(first + i * geo.s0_0));
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
    if (threadIdx.x == 0)
        limit_0[g] = limit;
}

// Sweep 2: project level 0, l1 of v0.
extern "C" __global__ void __launch_bounds__(256, 4)
project_0(unsigned char* __restrict__ work, const Geometry geo)
{
    const double* v0 = (const double*)(work + geo.v0_at);
    const double* limit_0 = (const double*)(work + geo.limit_0_at);
    float* limit_1 = (float*)(work + geo.limit_1_at);
    const int lane = threadIdx.x;
    const index g = blockIdx.x;
    const double limit = limit_0[g];
    const index begin = (index)blockIdx.y * geo.step_0, end = min(begin + geo.step_0, geo.n0_0);
    const index count = end - begin;
    constexpr int across = 256;
    const int along = lane;
    const double* row = v0 + begin;
#pragma unroll 4
    for (index i = along; i < count; i += across) {
        const double value = row[i];
        {
            const double left = shrink(value, limit);
            limit_1[row + i - v0] = left >= value ? infinity((float)0) : down(left);
        }
    }
}

// Sweep 2: project level 1, linf of y.
extern "C" __global__ void __launch_bounds__(128, 8)
project_1(const float* __restrict__ y, float* __restrict__ x, unsigned char* __restrict__ work, const Geometry geo)
{
    const float* limit_1 = (const float*)(work + geo.limit_1_at);
    const index begin = (index)blockIdx.x * 128;
    const int groups = (int)min((index)128, geo.n0_1 - begin), count = groups * 9;
    const float* from = y + begin * 9;
    __shared__ float limits[128];
    if (threadIdx.x < groups) {
        const index g = begin + threadIdx.x;
        limits[threadIdx.x] = limit_1[g];
    }
    __syncthreads();
    float* to = x + begin * 9;
#pragma unroll 4
    for (int i = threadIdx.x; i < count / 4; i += 128) {
        Pack pack = load(from + 4 * i);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            pack.at[k] = clip(pack.at[k], limits[(4 * i + k) / 9]);
        store(to + 4 * i, pack);
    }
    for (int i = count / 4 * 4 + threadIdx.x; i < count; i += 128)
        put(to + i, clip(get(from + i), limits[i / 9]));
}
