// l1(linf): takes gradients back through the projection of float32 arrays on a GPU.
//
// level 0  l1    of v0: in the middle
// level 1  linf  of y: rows (groups, reduced)
//
// Sweep 1 reads the arrays once and sums the gradients of the radii, from the leaf up to the root;
// sweep 2 reads them once more and writes those of the values, from the root down. y, its projection
// x and their gradients dy and dx lie in memory alike. `tape` is the workspace that the projection
// left, with values v, radii and limits. In `work`, of which nothing has to be initialised, h has
// gradients of radii. The functions of a call run on one stream, in the order in which they
// stand here. Sums are always joined in the same order, so results are equal to the bit. A batch
// entry that has a NaN or an infinity gets NaN. Written by projgen, codegen 1.

typedef int index;

constexpr unsigned WARP = 0xffffffffu;  // all its lanes

// Where each part of the tape and the workspace begins, in bytes; extents n and steps s of each level's
// loops, outermost first.
struct Geometry {
    long long total_at, v0_at, limit_1_at, slope_at, h0_at;
    long long ties_1_at, bound_1_at, top_1_at, lift_1_at;
    index s0_1, n1_1, groups_1, size_0, s_r0_0;
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

// A pack for the last time; else the compiler may split it up, where not all of it is needed.
__device__ __forceinline__ Pack load_last(const float* from)
{
    const float4 a = __ldcs((const float4*)from);
    return {a.x, a.y, a.z, a.w};
}

// A sum of floats in two of them, exact to about 48 bits, and without float64.
struct Sum {
    float high, low;
};

__device__ __forceinline__ void carry(Sum& sum, float a)
{
    const float total = __fadd_rn(sum.high, a);
    const float part = __fsub_rn(total, sum.high);
    const float lost = __fadd_rn(__fsub_rn(sum.high, __fsub_rn(total, part)), __fsub_rn(a, part));
    sum.high = total;
    sum.low = __fadd_rn(sum.low, lost);
}

// Add a gradient. Infinity stays what it is.
__device__ __forceinline__ void add(Sum& sum, float a) { carry(sum, a); }
__device__ __forceinline__ double fold(const Sum& sum)
{
    return fabsf(sum.high) < infinity(0.0f) ? (double)sum.high + (double)sum.low : (double)sum.high;
}

// Add a gradient.
__device__ __forceinline__ void add(double& sum, double a) { sum += a; }

// A gradient in the direction in which the magnitude of y grows.
__device__ __forceinline__ float toward(float y, float g) { return y < 0 ? -g : g; }

// What a value of y hands to the radius of its group.
__device__ __forceinline__ float to_radius(float y, float dx, float limit)
{
    return fabsf(y) > limit ? toward(y, dx) : 0.0f;
}

// The gradient of a value of y.
// Values up to `bound` were not clipped. `lift` rises to those that are `top`, the largest.
__device__ __forceinline__ float to_value(float y, float dx, float bound, float top, float lift)
{
    return (fabsf(y) <= bound ? dx : bound - bound) + (fabsf(y) == top ? toward(y, lift) : 0.0f);
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

// Sweep 1: the gradients of the radii of level 1, linf of y.
extern "C" __global__ void __launch_bounds__(256, 4)
gather_1(const float* __restrict__ y, const float* __restrict__ dx, const unsigned char* __restrict__ tape, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* v0 = (const double*)(tape + geo.v0_at);
    const float* limit_1 = (const float*)(tape + geo.limit_1_at);
    double* h0 = (double*)(work + geo.h0_at);
    index* ties_1 = (index*)(work + geo.ties_1_at);
    const int lane = threadIdx.x % 32;
    const index g = (index)blockIdx.x * 8 + threadIdx.x / 32;
    if (g >= geo.groups_1)
        return;
    const double value = v0[g];
    const float limit = limit_1[g];
    Sum a = {0.0f, 0.0f};
    index n = 0;
    if (limit > 0 && limit < infinity((float)0)) {
        const float top = (float)value;
        const index count = geo.n1_1;
        constexpr int across = 32;
        const int along = lane;
        const index at = g * geo.s0_1;
        const index head = min(count, before_access(y + at)), packs = (count - head) / 4;
        for (index i = along; i < head; i += across) {
            const float y_one = get(y + at + i);
            const float dx_one = get(dx + at + i);
            add(a, to_radius(y_one, dx_one, limit));
            n += fabsf(y_one) == top;
        }
#pragma unroll 4
        for (index i = along; i < packs; i += across) {
            const Pack y_pack = load(y + at + head + 4 * i), dx_pack = load(dx + at + head + 4 * i);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                add(a, to_radius(y_pack.at[k], dx_pack.at[k], limit));
                n += fabsf(y_pack.at[k]) == top;
            }
        }
        for (index i = head + 4 * packs + along; i < count; i += across) {
            const float y_one = get(y + at + i);
            const float dx_one = get(dx + at + i);
            add(a, to_radius(y_one, dx_one, limit));
            n += fabsf(y_one) == top;
        }
    }
    const double sum = warp_sum(fold(a));
    n = warp_sum(n);
    if (lane == 0) {
        const double gained = limit > 0 && limit < infinity((float)0) ? sum : limit == limit ? 0.0 : limit;
        h0[g] = gained;
        ties_1[g] = n;
    }
}

// Between the sweeps, a block for each batch entry: the levels above, up to the root and back.
extern "C" __global__ void __launch_bounds__(1024, 1)
middle(const double* __restrict__ radii, double radius, const unsigned char* __restrict__ tape, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* total = (const double*)(tape + geo.total_at);
    double* slope = (double*)(work + geo.slope_at);
    const double* v0 = (const double*)(tape + geo.v0_at);
    const float* limit_1 = (const float*)(tape + geo.limit_1_at);
    const double* h0 = (const double*)(work + geo.h0_at);
    const index* ties_1 = (const index*)(work + geo.ties_1_at);
    float* bound_1 = (float*)(work + geo.bound_1_at);
    float* top_1 = (float*)(work + geo.top_1_at);
    float* lift_1 = (float*)(work + geo.lift_1_at);
    const index entry = blockIdx.x;

    // Up: level 0, l1 of v0.
    {
        const index group = entry;
        const double* first = v0;
        const double value = total[group];
        double u = radii ? radii[group] : radius;
        if (!(u >= 0.0 && value < infinity(0.0)))
            u = not_a_number();
        const double limit = u;
        double a = 0.0;
        index n = 0;
        for (index i = threadIdx.x; i < geo.size_0; i += blockDim.x) {
            const index at = first - v0 + i * geo.s_r0_0;
            const double below = v0[at];
            const float left = limit_1[at];
            const double gradient = h0[at];
            add(a, below > 0.0 && left > 0 ? gradient : 0.0);
            n += below > 0.0 && left > 0;
        }
        a = block_sum(a);
        n = block_sum(n);
        if (threadIdx.x == 0) {
            const double gained = limit > 0.0 && limit < value ? a / max(n, (index)1) : limit == limit ? 0.0 : limit;
            slope[group] = gained;
        }
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
        const double limit = u;
        const double rise = value == 0.0 && u > 0.0;
        const double floor = limit >= value && (value > 0.0 || rise > 0.0) ? -1 : limit <= 0.0 ? infinity((double)0) : 0;
        const double mean = slope[group];
        const double kept = value == 0.0 ? rise : limit >= value;
        for (index i = threadIdx.x; i < geo.size_0; i += blockDim.x) {
            const index at = first - v0 + i * geo.s_r0_0;
            const double below = v0[at];
            const float left = limit_1[at];
            const double gradient = h0[at];
            const double rose = below > 0.0 ? !(left <= floor) ? gradient - mean : 0.0 : kept;
            bound_1[at] = left == 0 || (below == 0.0 && rose == 0.0) ? -1 : left;
            top_1[at] = below;
            lift_1[at] = below == 0.0 ? 0.0 : rose / max(ties_1[at], (index)1);
        }
    }
}

// Sweep 2: the gradients of the values of level 1, linf of y.
extern "C" __global__ void __launch_bounds__(256, 4)
share_1(const float* __restrict__ y, const float* __restrict__ dx, float* __restrict__ dy, unsigned char* __restrict__ work, const Geometry geo)
{
    const float* bound_1 = (const float*)(work + geo.bound_1_at);
    const float* top_1 = (const float*)(work + geo.top_1_at);
    const float* lift_1 = (const float*)(work + geo.lift_1_at);
    const int lane = threadIdx.x % 32;
    const index g = (index)blockIdx.x * 8 + threadIdx.x / 32;
    if (g >= geo.groups_1)
        return;
    const float bound = bound_1[g];
    const float top = top_1[g];
    const float lift = lift_1[g];
    const bool dead = bound == -1 && lift == 0;
    const index count = geo.n1_1;
    constexpr int across = 32;
    const int along = lane;
    const index at = g * geo.s0_1;
    const index head = min(count, before_access(y + at)), packs = (count - head) / 4;
    for (index i = along; i < head; i += across) {
        const float y_one = get(y + at + i);
        const float dx_one = get(dx + at + i);
        put(dy + at + i, dead ? 0.0f : to_value(y_one, dx_one, bound, top, lift));
    }
#pragma unroll 4
    for (index i = along; i < packs; i += across) {
        const index place = at + head + 4 * i;
        Pack result = {};
        if (!dead) {
            const Pack y_pack = load_last(y + place), dx_pack = load_last(dx + place);
#pragma unroll
            for (int k = 0; k < 4; ++k)
                result.at[k] = to_value(y_pack.at[k], dx_pack.at[k], bound, top, lift);
        }
        store(dy + place, result);
    }
    for (index i = head + 4 * packs + along; i < count; i += across) {
        const float y_one = get(y + at + i);
        const float dx_one = get(dx + at + i);
        put(dy + at + i, dead ? 0.0f : to_value(y_one, dx_one, bound, top, lift));
    }
}
