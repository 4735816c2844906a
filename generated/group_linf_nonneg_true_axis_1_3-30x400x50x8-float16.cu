// linf(nonneg=True): projects groups of float16 arrays on a GPU.
//
// a block of threads takes a group
// the elements of a group are runs, equally far apart in each
//
// Arithmetic is in float64. Sums are always joined in the same order, so each run has the same bits.
// A group that has a NaN or an infinity, or whose norm is beyond float64, becomes NaN. Written by
// projgen, codegen 1.

#include <cuda_fp16.h>

constexpr unsigned WARP = 0xffffffffu;  // all its lanes

// Where an array has its groups, in elements: `bases` is where the index has the first of each row
// of groups, which are `lane` apart. Runs have `offsets`, and their elements are `step` apart.
struct Place {
    long long bases, offsets, lane, step;
};

// `extent` groups are a row.
struct Geometry {
    long long extent, count, run;
    Place y, x;
};

__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

__device__ __forceinline__ float widen(unsigned bits)
{
    return __half2float(__ushort_as_half((unsigned short)bits));
}

__device__ __forceinline__ unsigned narrow(float x)
{
    return __half_as_ushort(__float2half_rn(x));
}

__device__ __forceinline__ double get(unsigned short x) { return widen(x); }
__device__ __forceinline__ unsigned short rounded(double x) { return (unsigned short)narrow((float)x); }

// How a value counts: below 0 as 0, but an infinity is noticed.
__device__ __forceinline__ double counted(double x) { return x > 0.0 ? x : x * 0.0 + 0.0; }

// Of |x|: their order is that of the magnitudes, with infinity and NaN on top.
__device__ __forceinline__ long long magnitude_bits(double x)
{
    return __double_as_longlong(x) & 0x7fffffffffffffffll;
}

// Over the threads of a block, in a fixed order: all of them have the result.
__device__ __forceinline__ long long team_max(long long a)
{
    __shared__ long long parts[32];
    for (int away = 16; away > 0; away /= 2)
        a = max(a, __shfl_xor_sync(WARP, a, away));
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = a;
    __syncthreads();
    long long joined = parts[0];
    for (int i = 1; i < (int)blockDim.x / 32; ++i)
        joined = max(joined, parts[i]);
    __syncthreads();  // the next join may overwrite the parts
    return joined;
}

__device__ __forceinline__ long long first(const Place& place, const long long* index, unsigned outer, unsigned extent)
{
    return index[place.bases + outer / extent] + outer % extent * place.lane;
}

__device__ __forceinline__ long long way(const Place& place, const long long* index, int j, int run)
{
    return index[place.offsets + j / run] + j % run * place.step;
}

// Up: the groups' values.
extern "C" __global__ void __launch_bounds__(256, 1)
aggregate(const unsigned short* __restrict__ y, double* __restrict__ total, const long long* __restrict__ index, Geometry geo)
{
    const int team = blockDim.x, member = threadIdx.x;
    const unsigned group = blockIdx.x;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const unsigned short* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[way(geo.y, index, j, (int)geo.run)])); };
    long long top = 0;
    for (int j = member; j < count; j += team)
        top = max(top, magnitude_bits(value(j)));
    const double found = __longlong_as_double(team_max(top));
    if (member == 0)
        total[group] = found;
}

// Down: the groups in their balls.
extern "C" __global__ void __launch_bounds__(256, 1)
project(const unsigned short* y, unsigned short* x, const double* __restrict__ total, const double* __restrict__ radii, double radius, const long long* __restrict__ index, Geometry geo)
{
    const int team = blockDim.x, member = threadIdx.x;
    const unsigned group = blockIdx.x;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const unsigned short* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    unsigned short* to = x + first(geo.x, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[way(geo.y, index, j, (int)geo.run)])); };
    double u = radii ? radii[group] : radius;
    if (!(u >= 0.0 && total[group] < infinity()))
        u = not_a_number();
    if (!(u < total[group])) {
        for (int j = member; j < count; j += team)
            to[way(geo.x, index, j, (int)geo.run)] = u >= total[group] ? rounded(value(j)) : rounded(u);
        return;
    }
    const double goal = u;
    for (int j = member; j < count; j += team) {
        const double v = value(j);
        const double left = fmin(v, goal);
        to[way(geo.x, index, j, (int)geo.run)] = rounded(left);
    }
}
