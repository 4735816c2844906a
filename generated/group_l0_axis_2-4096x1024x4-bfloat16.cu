// l0: projects groups of bfloat16 arrays on a GPU.
//
// a warp takes a group
// the elements of a group are equally far apart
// each step of a search reads its group again
//
// Arithmetic is in float64. Sums are always joined in the same order, so each run has the same bits.
// A group that has a NaN or an infinity, or whose norm is beyond float64, becomes NaN. Written by
// projgen, codegen 1.

constexpr unsigned WARP = 0xffffffffu;  // all its lanes

// Where an array has its groups, in elements: `bases` is where the index has the first of each row
// of groups, which are `lane` apart. Elements are `step` apart.
struct Place {
    long long bases, lane, step;
};

// `extent` groups are a row.
struct Geometry {
    long long groups, extent, count;
    Place y, x;
};

__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

typedef unsigned short bfloat16;  // the upper half of a float

__device__ __forceinline__ float widen(unsigned bits) { return __uint_as_float(bits << 16); }

// The nearest bfloat16, ties to even; a NaN stays one.
__device__ __forceinline__ unsigned narrow(float x)
{
    const unsigned bits = __float_as_uint(x);
    return x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : bits >> 16 | 0x40u;
}

__device__ __forceinline__ double get(unsigned short x) { return widen(x); }
__device__ __forceinline__ unsigned short rounded(double x) { return (unsigned short)narrow((float)x); }

// How a value counts: without its sign.
__device__ __forceinline__ double counted(double x) { return fabs(x); }

// Of |x|: their order is that of the magnitudes, with infinity and NaN on top.
__device__ __forceinline__ long long magnitude_bits(double x)
{
    return __double_as_longlong(x) & 0x7fffffffffffffffll;
}

// Over the lanes of a warp, in a fixed order: all of them have the result.
__device__ __forceinline__ double team_sum(double a)
{
    for (int away = 16; away > 0; away /= 2)
        a = a + __shfl_xor_sync(WARP, a, away);
    return a;
}

__device__ __forceinline__ long long first(const Place& place, const long long* index, unsigned outer, unsigned extent)
{
    return index[place.bases + outer / extent] + outer % extent * place.lane;
}

// Up: the groups' values.
extern "C" __global__ void __launch_bounds__(256, 1)
aggregate(const unsigned short* __restrict__ y, double* __restrict__ total, const long long* __restrict__ index, Geometry geo)
{
    const int team = 32, member = threadIdx.x % 32;
    const unsigned group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= geo.groups)
        return;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const unsigned short* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[j * geo.y.step])); };
    double sum = 0.0;
    for (int j = member; j < count; j += team)
        sum += value(j) > 0.0 ? 1.0 + value(j) * 0.0 : value(j) * 0.0;
    const double found = team_sum(sum);
    if (member == 0)
        total[group] = found;
}

// Down: the groups in their balls.
extern "C" __global__ void __launch_bounds__(256, 1)
project(const unsigned short* y, unsigned short* x, const double* __restrict__ total, const double* __restrict__ radii, double radius, const long long* __restrict__ index, Geometry geo)
{
    const int team = 32, member = threadIdx.x % 32;
    const unsigned group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= geo.groups)
        return;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const unsigned short* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    unsigned short* to = x + first(geo.x, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[j * geo.y.step])); };
    double u = radii ? radii[group] : radius;
    if (!(u >= 0.0 && total[group] < infinity()))
        u = not_a_number();
    if (!(u < total[group])) {
        for (int j = member; j < count; j += team)
            to[j * geo.x.step] = u >= total[group] ? from[j * geo.y.step] : rounded(u);
        return;
    }
    const double goal = u;
    const double wanted = floor(goal);
    long long least = 0;
    for (int bit = 62; bit >= 29 && wanted > 0.0; --bit) {
        const long long higher = least | 1ll << bit;
        double reaching = 0.0;
        for (int j = member; j < count; j += team)
            reaching += magnitude_bits(value(j)) >= higher ? 1.0 : 0.0;
        if (team_sum(reaching) >= wanted)
            least = higher;
    }
    double larger = 0.0;
    for (int j = member; j < count; j += team)
        larger += magnitude_bits(value(j)) > least ? 1.0 : 0.0;
    const double room = wanted - team_sum(larger);  // for so many of those that are equal to the least
    int end = count;  // of the places where these are kept
    for (int low = 0; low < end && wanted > 0.0;) {
        const int middle = low + (end - low) / 2;
        double equal = 0.0;
        for (int j = member; j <= middle; j += team)
            equal += magnitude_bits(value(j)) == least ? 1.0 : 0.0;
        if (team_sum(equal) > room)
            end = middle;
        else
            low = middle + 1;
    }
    for (int j = member; j < count; j += team) {
        const double v = value(j);
        const double left = wanted > 0.0 && (magnitude_bits(v) > least || (magnitude_bits(v) == least && j < end)) ? v : 0.0;
        to[j * geo.x.step] = rounded(copysign(left, get(from[j * geo.y.step])));
    }
}
