// l1(l2(linf)): takes gradients back through the projection of float32 arrays on a GPU.
//
// level 0  l1    of v0: in the middle
// level 1  l2    of v1: rows (groups, reduced)
// level 2  linf  of y: packed (groups, reduced)
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
    long long total_at, v0_at, v1_at, limit_1_at, limit_2_at;
    long long slope_at, h0_at, h1_at, ties_2_at, unit_1_at;
    long long scale_1_at, tilt_1_at, kept_1_at, bound_2_at, top_2_at;
    long long lift_2_at, part_2_at;
    index s0_1, n1_1, groups_1, n0_2, size_0, s_r0_0;
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
__device__ __forceinline__ double fold(double sum) { return sum; }

// A gradient in the direction in which the magnitude of y grows.
__device__ __forceinline__ float toward(float y, float g) { return y < 0 ? -g : g; }

// A power of two near 1 / value.
__device__ __forceinline__ double unit_of(double value, double)
{
    const int exponent = (int)(__double_as_longlong(value) >> 52 & 0x7ff) - 1023;
    return __longlong_as_double((long long)min(max(1023 - exponent, 1), 2046) << 52);
}

// What a value of y hands to the radius of its group.
__device__ __forceinline__ float to_radius(float y, float dx, float limit)
{
    return fabsf(y) > limit ? toward(y, dx) : 0.0f;
}

// The gradient of a value of y.
// Values up to `bound` were not clipped. `lift` rises to those that are `top`, the largest.
// Of a group of zeros `part` would be left, if it grew a little; of others it is 1.
__device__ __forceinline__ float to_value(float y, float dx, float bound, float top, float lift, float part)
{
    return (fabsf(y) <= bound ? part * dx : bound - bound) + (fabsf(y) == top ? toward(y, lift) : 0.0f);
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

// Sweep 1: the gradients of the radii of level 2, linf of y.
extern "C" __global__ void __launch_bounds__(128, 8)
gather_2(const float* __restrict__ y, const float* __restrict__ dx, const unsigned char* __restrict__ tape, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* v1 = (const double*)(tape + geo.v1_at);
    const float* limit_2 = (const float*)(tape + geo.limit_2_at);
    double* h1 = (double*)(work + geo.h1_at);
    index* ties_2 = (index*)(work + geo.ties_2_at);
    const index begin = (index)blockIdx.x * 128;
    const int groups = (int)min((index)128, geo.n0_2 - begin), count = groups * 9;
    const index from = begin * 9;
    __shared__ float tile[1152];
    __shared__ short marked[1152];
    __shared__ float limits[128];
    __shared__ float tops[128];
    if (threadIdx.x < groups) {
        const index g = begin + threadIdx.x;
        const double value = v1[g];
        const float limit = limit_2[g];
        limits[threadIdx.x] = limit;
        tops[threadIdx.x] = (float)value;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count / 4; i += 128) {
        const Pack y_pack = load(y + from + 4 * i), dx_pack = load(dx + from + 4 * i);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int group = (4 * i + k) / 9;
            tile[(4 * i + k)] = to_radius(y_pack.at[k], dx_pack.at[k], limits[group]);
            marked[(4 * i + k)] = fabsf(y_pack.at[k]) == tops[group];
        }
    }
    for (int i = count / 4 * 4 + threadIdx.x; i < count; i += 128) {
        const float y_one = get(y + from + i);
        const float dx_one = get(dx + from + i);
        const int group = i / 9;
        tile[i] = to_radius(y_one, dx_one, limits[group]);
        marked[i] = fabsf(y_one) == tops[group];
    }
    __syncthreads();
    if (threadIdx.x < groups) {
        const index g = begin + threadIdx.x;
        const double value = v1[g];
        const float limit = limit_2[g];
        Sum a = {0.0f, 0.0f};
        index n = 0;
#pragma unroll
        for (int i = 0; i < 9; ++i) {
            add(a, tile[threadIdx.x * 9 + i]);
            n += marked[threadIdx.x * 9 + i];
        }
        const double sum = fold(a);
        const double gained = limit > 0 && limit < infinity((float)0) ? sum : limit == limit ? 0.0 : limit;
        h1[g] = gained;
        ties_2[g] = n;
    }
}

// Sweep 1: the gradients of the radii of level 1, l2 of v1.
extern "C" __global__ void __launch_bounds__(256, 4)
gather_1(const unsigned char* __restrict__ tape, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* v0 = (const double*)(tape + geo.v0_at);
    const double* limit_1 = (const double*)(tape + geo.limit_1_at);
    const double* v1 = (const double*)(tape + geo.v1_at);
    const double* h1 = (const double*)(work + geo.h1_at);
    double* h0 = (double*)(work + geo.h0_at);
    const int lane = threadIdx.x % 32;
    const index g = (index)blockIdx.x * 8 + threadIdx.x / 32;
    if (g >= geo.groups_1)
        return;
    const double value = v0[g];
    const double limit = limit_1[g];
    double a = 0.0;
    if (limit > 0 && limit < 1) {
        const double unit = unit_of(value, (double)0);
        const index count = geo.n1_1;
        constexpr int across = 32;
        const int along = lane;
        const index at = g * geo.s0_1;
#pragma unroll 4
        for (index i = along; i < count; i += across) {
            const double below = v1[at + i];
            const double gradient = h1[at + i];
            add(a, below * unit * gradient);
        }
    }
    const double sum = warp_sum(fold(a));
    if (lane == 0) {
        const double gained = limit > 0 && limit < 1 ? sum / (value * unit_of(value, (double)0)) : limit == limit ? 0.0 : limit;
        h0[g] = gained;
    }
}

// Between the sweeps, a block for each batch entry: the levels above, up to the root and back.
extern "C" __global__ void __launch_bounds__(1024, 1)
middle(const double* __restrict__ radii, double radius, const unsigned char* __restrict__ tape, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* total = (const double*)(tape + geo.total_at);
    double* slope = (double*)(work + geo.slope_at);
    const double* v0 = (const double*)(tape + geo.v0_at);
    const double* limit_1 = (const double*)(tape + geo.limit_1_at);
    const double* h0 = (const double*)(work + geo.h0_at);
    double* unit_1 = (double*)(work + geo.unit_1_at);
    double* scale_1 = (double*)(work + geo.scale_1_at);
    double* tilt_1 = (double*)(work + geo.tilt_1_at);
    double* kept_1 = (double*)(work + geo.kept_1_at);
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
            const double left = limit_1[at];
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
            const double left = limit_1[at];
            const double gradient = h0[at];
            const double rose = below > 0.0 ? !(left <= floor) ? gradient - mean : 0.0 : kept;
            unit_1[at] = unit_of(below, (double)0);
            scale_1[at] = below == 0.0 ? rose : left;
            tilt_1[at] = below == 0.0 ? 0.0 : (rose - left * gradient) / (below * unit_of(below, (double)0));
            kept_1[at] = below == 0.0 ? rose : left;
        }
    }
}

// Sweep 2: the gradients of the values of level 1, l2 of v1.
extern "C" __global__ void __launch_bounds__(256, 4)
share_1(const unsigned char* __restrict__ tape, unsigned char* __restrict__ work, const Geometry geo)
{
    const double* v1 = (const double*)(tape + geo.v1_at);
    const float* limit_2 = (const float*)(tape + geo.limit_2_at);
    const double* h1 = (const double*)(work + geo.h1_at);
    const double* unit_1 = (const double*)(work + geo.unit_1_at);
    const double* scale_1 = (const double*)(work + geo.scale_1_at);
    const double* tilt_1 = (const double*)(work + geo.tilt_1_at);
    const double* kept_1 = (const double*)(work + geo.kept_1_at);
    const index* ties_2 = (const index*)(work + geo.ties_2_at);
    float* bound_2 = (float*)(work + geo.bound_2_at);
    float* top_2 = (float*)(work + geo.top_2_at);
    float* lift_2 = (float*)(work + geo.lift_2_at);
    float* part_2 = (float*)(work + geo.part_2_at);
    const int lane = threadIdx.x % 32;
    const index g = (index)blockIdx.x * 8 + threadIdx.x / 32;
    if (g >= geo.groups_1)
        return;
    const double unit = unit_1[g];
    const double scale = scale_1[g];
    const double tilt = tilt_1[g];
    const double kept = kept_1[g];
    const index count = geo.n1_1;
    constexpr int across = 32;
    const int along = lane;
    const index at = g * geo.s0_1;
#pragma unroll 4
    for (index i = along; i < count; i += across) {
        const index place = at + i;
        const double below = v1[place];
        const float left = limit_2[place];
        const double gradient = h1[place];
        const double rose = below > 0.0 ? gradient * scale + below * unit * tilt : kept;
        bound_2[place] = left == 0 || (below == 0.0 && rose == 0.0) ? -1 : left;
        top_2[place] = below;
        lift_2[place] = below == 0.0 ? 0.0 : rose / max(ties_2[place], (index)1);
        part_2[place] = below == 0.0 ? rose : 1.0;
    }
}

// Sweep 2: the gradients of the values of level 2, linf of y.
extern "C" __global__ void __launch_bounds__(128, 8)
share_2(const float* __restrict__ y, const float* __restrict__ dx, float* __restrict__ dy, unsigned char* __restrict__ work, const Geometry geo)
{
    const float* bound_2 = (const float*)(work + geo.bound_2_at);
    const float* top_2 = (const float*)(work + geo.top_2_at);
    const float* lift_2 = (const float*)(work + geo.lift_2_at);
    const float* part_2 = (const float*)(work + geo.part_2_at);
    const index begin = (index)blockIdx.x * 128;
    const int groups = (int)min((index)128, geo.n0_2 - begin), count = groups * 9;
    const index from = begin * 9;
    __shared__ float bounds[128];
    __shared__ float tops[128];
    __shared__ float lifts[128];
    __shared__ float parts[128];
    if (threadIdx.x < groups) {
        const index g = begin + threadIdx.x;
        bounds[threadIdx.x] = bound_2[g];
        tops[threadIdx.x] = top_2[g];
        lifts[threadIdx.x] = lift_2[g];
        parts[threadIdx.x] = part_2[g];
    }
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < count / 4; i += 128) {
        const index place = from + 4 * i;
        Pack result;
        const Pack y_pack = load_last(y + place), dx_pack = load_last(dx + place);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int group = (4 * i + k) / 9;
            result.at[k] = to_value(y_pack.at[k], dx_pack.at[k], bounds[group], tops[group], lifts[group], parts[group]);
        }
        store(dy + place, result);
    }
    for (int i = count / 4 * 4 + threadIdx.x; i < count; i += 128) {
        const int group = i / 9;
        const index place = from + i;
        const float y_one = get(y + place);
        const float dx_one = get(dx + place);
        put(dy + place, to_value(y_one, dx_one, bounds[group], tops[group], lifts[group], parts[group]));
    }
}
