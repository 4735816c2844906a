// l2(groups): projects groups of float32 arrays on a GPU.
//
// a warp takes a group
// the elements of a group lie anywhere along an axis: each has an offset
//
// Arithmetic is in float64. Sums are always joined in the same order, so each run has the same bits.
// A group that has a NaN or an infinity, or whose norm is beyond float64, becomes NaN. Written by
// projgen, codegen 1.

constexpr unsigned WARP = 0xffffffffu;  // all its lanes

// Where an array has its groups, in elements: `bases` is where the index has the first of each row
// of groups, which are `lane` apart. Each element has an offset from there, from `offsets` on.
struct Place {
    long long bases, offsets, lane;
};

// `extent` groups are a row.
struct Geometry {
    long long groups, extent, labels, starts;
    Place y, x;
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
aggregate(const float* __restrict__ y, double* __restrict__ total, const long long* __restrict__ index, Geometry geo)
{
    const int team = 32, member = threadIdx.x % 32;
    const unsigned group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= geo.groups)
        return;
    const unsigned labels = (unsigned)geo.labels, outer = group / labels;
    const long long label = geo.starts + group % labels;
    const long long start = index[label];
    const int count = (int)(index[label + 1] - start);
    const float* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[index[geo.y.offsets + start + j]])); };
    long long top = 0;
    for (int j = member; j < count; j += team)
        top = max(top, magnitude_bits(value(j)));
    const double largest = __longlong_as_double(team_max(top));
    double found = largest;
    if (largest > 0.0 && largest < infinity()) {
        double sum = 0.0;
        for (int j = member; j < count; j += team) {
            const double share = value(j) / largest;
            sum += share * share;
        }
        found *= sqrt(team_sum(sum));
    }
    if (member == 0)
        total[group] = found;
}

// Down: the groups in their balls.
extern "C" __global__ void __launch_bounds__(256, 1)
project(const float* y, float* x, const double* __restrict__ total, const double* __restrict__ radii, double radius, const long long* __restrict__ index, Geometry geo)
{
    const int team = 32, member = threadIdx.x % 32;
    const unsigned group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= geo.groups)
        return;
    const unsigned labels = (unsigned)geo.labels, outer = group / labels;
    const long long label = geo.starts + group % labels;
    const long long start = index[label];
    const int count = (int)(index[label + 1] - start);
    const float* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    float* to = x + first(geo.x, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[index[geo.y.offsets + start + j]])); };
    double u = radii ? radii[group] : radius;
    if (!(u >= 0.0 && total[group] < infinity()))
        u = not_a_number();
    if (!(u < total[group])) {
        for (int j = member; j < count; j += team)
            to[index[geo.x.offsets + start + j]] = u >= total[group] ? from[index[geo.y.offsets + start + j]] : rounded(u);
        return;
    }
    const double norm = total[group], goal = u;
    for (int j = member; j < count; j += team) {
        const double v = value(j);
        const double left = v / norm * goal;
        to[index[geo.x.offsets + start + j]] = rounded(copysign(left, get(from[index[geo.y.offsets + start + j]])));
    }
}
