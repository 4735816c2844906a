// l1(w): projects groups of float32 arrays on a GPU.
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
    Place y, x, w;
};

__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

__device__ __forceinline__ double get(float x) { return x; }
__device__ __forceinline__ float rounded(double x) { return (float)x; }

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

// Over the lanes of a warp, in a fixed order: all of them have the result.
__device__ __forceinline__ long long team_max(long long a)
{
    for (int away = 16; away > 0; away /= 2)
        a = max(a, __shfl_xor_sync(WARP, a, away));
    return a;
}

__device__ __forceinline__ long long first(const Place& place, const long long* index, unsigned outer, unsigned extent)
{
    return index[place.bases + outer / extent] + outer % extent * place.lane;
}

// Up: the groups' values.
extern "C" __global__ void __launch_bounds__(256, 1)
aggregate(const float* __restrict__ y, const double* __restrict__ weights, double* __restrict__ total, const long long* __restrict__ index, Geometry geo)
{
    const int team = 32, member = threadIdx.x % 32;
    const unsigned group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= geo.groups)
        return;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const float* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[j * geo.y.step])); };
    const double* own = weights + first(geo.w, index, outer, (unsigned)geo.extent);
    const auto given = [&](int j) { return (double)own[j * geo.w.step]; };
    long long heavy = 0;
    for (int j = member; j < count; j += team)
        heavy = max(heavy, magnitude_bits(given(j) >= 0.0 ? given(j) : not_a_number()));
    const double heaviest = __longlong_as_double(team_max(heavy));
    int exponent = 0;
    if (heaviest < infinity())
        frexp(heaviest, &exponent);
    const double unit = ldexp(1.0, 1 - max(exponent, -1000));
    // Below 2, and with room for squares.
    const auto weight = [&](int j) { return given(j) * unit; };
    double sum = 0.0;
    for (int j = member; j < count; j += team)
        sum += weight(j) * value(j);
    const double found = team_sum(sum);
    // Weights that differ by more than 2^500 have no room for squares together.
    long long light = -magnitude_bits(infinity());
    for (int j = member; j < count; j += team)
        light = max(light, given(j) > 0.0 ? -magnitude_bits(given(j)) : light);
    const bool sound = heaviest < infinity() && __longlong_as_double(-team_max(light)) * 0x1p500 >= heaviest;
    if (member == 0 && sound)
        total[group] = found > 0.0 ? fmax(found / unit, 0x1p-1074) : found;
    else if (member == 0)
        total[group] = not_a_number();
}

// Down: the groups in their balls.
extern "C" __global__ void __launch_bounds__(256, 1)
project(const float* y, float* x, const double* __restrict__ weights, const double* __restrict__ total, const double* __restrict__ radii, double radius, const long long* __restrict__ index, Geometry geo)
{
    const int team = 32, member = threadIdx.x % 32;
    const unsigned group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= geo.groups)
        return;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const float* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    float* to = x + first(geo.x, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[j * geo.y.step])); };
    const double* own = weights + first(geo.w, index, outer, (unsigned)geo.extent);
    const auto given = [&](int j) { return (double)own[j * geo.w.step]; };
    long long heavy = 0;
    for (int j = member; j < count; j += team)
        heavy = max(heavy, magnitude_bits(given(j) >= 0.0 ? given(j) : not_a_number()));
    const double heaviest = __longlong_as_double(team_max(heavy));
    int exponent = 0;
    if (heaviest < infinity())
        frexp(heaviest, &exponent);
    const double unit = ldexp(1.0, 1 - max(exponent, -1000));
    // Below 2, and with room for squares.
    const auto weight = [&](int j) { return given(j) * unit; };
    double u = radii ? radii[group] : radius;
    if (!(u >= 0.0 && total[group] < infinity()))
        u = not_a_number();
    if (!(u < total[group])) {
        for (int j = member; j < count; j += team)
            to[j * geo.x.step] = u >= total[group] ? from[j * geo.y.step] : rounded(u);
        return;
    }
    const double goal = u * unit;
    double t = goal > 0.0 ? 0.0 : infinity(), last = -1.0;
    while (goal > 0.0) {
        double excess = 0.0, slope = 0.0;
        for (int j = member; j < count; j += team) {
            const double w = weight(j), left = value(j) - t * w;
            if (left > 0.0) {
                excess += w * left;
                slope += w * w;
            }
        }
        excess = team_sum(excess) - goal;
        slope = team_sum(slope);
        if (slope > 0.0)
            t += fmax(excess / slope, 0.0);
        if (slope == last || !(slope > 0.0))
            break;
        last = slope;
    }
    for (int j = member; j < count; j += team) {
        const double v = value(j);
        const double left = weight(j) > 0.0 ? fmax(v - t * weight(j), 0.0) : v;
        to[j * geo.x.step] = rounded(copysign(left, get(from[j * geo.y.step])));
    }
}
