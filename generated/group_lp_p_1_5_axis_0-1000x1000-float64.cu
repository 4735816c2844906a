// lp(p=1.5): projects groups of float64 arrays on a GPU.
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

__device__ __forceinline__ double get(double x) { return x; }
__device__ __forceinline__ double rounded(double x) { return (double)x; }

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

constexpr double P = 1.5;

// The z at which e^z + e^(c + (P - 1) z) is 1: Newton's steps come down to it, for the logarithm of
// the sum is convex.
__device__ __forceinline__ double depth(double c)
{
    double z = fmin(0.0, -c / (P - 1.0));
    for (int turn = 0; turn < 200; ++turn) {
        const double one = exp(z), other = exp(c + (P - 1.0) * z);
        const double lower = z - log(one + other) * (one + other) / (one + (P - 1.0) * other);
        if (!(lower < z - 0x1p-52 * (1.0 - z)))
            break;
        z = lower;
    }
    return z;
}

// Up: the groups' values.
extern "C" __global__ void __launch_bounds__(256, 1)
aggregate(const double* __restrict__ y, double* __restrict__ total, const long long* __restrict__ index, Geometry geo)
{
    const int team = 32, member = threadIdx.x % 32;
    const unsigned group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= geo.groups)
        return;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const double* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[j * geo.y.step])); };
    long long top = 0;
    for (int j = member; j < count; j += team)
        top = max(top, magnitude_bits(value(j)));
    const double largest = __longlong_as_double(team_max(top));
    double found = largest;
    if (largest > 0.0 && largest < infinity()) {
        double sum = 0.0;
        for (int j = member; j < count; j += team)
            sum += pow(value(j) / largest, P);
        found *= pow(team_sum(sum), 1.0 / P);
    }
    if (member == 0)
        total[group] = found;
}

// Down: the groups in their balls.
extern "C" __global__ void __launch_bounds__(256, 1)
project(const double* y, double* x, const double* __restrict__ total, const double* __restrict__ radii, double radius, const long long* __restrict__ index, Geometry geo)
{
    const int team = 32, member = threadIdx.x % 32;
    const unsigned group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (group >= geo.groups)
        return;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const double* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    double* to = x + first(geo.x, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[j * geo.y.step])); };
    double u = radii ? radii[group] : radius;
    if (!(u >= 0.0 && total[group] < infinity()))
        u = not_a_number();
    if (!(u < total[group])) {
        for (int j = member; j < count; j += team)
            to[j * geo.x.step] = u >= total[group] ? from[j * geo.y.step] : rounded(u);
        return;
    }
    const double norm = total[group], goal = u;
    // Values count by the norm, so that t has no unit: by logarithms, which do not underflow.
    const double log_norm = log(norm), log_goal = log(goal);
    const auto shift = [&](double v) { return (P - 2.0) * (log(v) - log_norm); };
    double widest = 0.0;
    for (int j = member; j < count; j += team) {
        const double v = value(j);
        if (v > 0.0)
            widest = fmax(widest, fabs(shift(v)));
    }
    const double share = goal / norm, bound = __longlong_as_double(team_max(magnitude_bits(widest))) + 1500.0 * P;
    double low = -bound, high = bound, t = fmin(fmax(log1p(-share) - (P - 1.0) * log(share), low), high);
    for (int turn = 0; goal > 0.0 && turn < 200; ++turn) {
        double sum = 0.0, slope = 0.0;  // of (w x / goal)^P, and how it falls with t by P
        for (int j = member; j < count; j += team) {
            const double v = value(j);
            if (v > 0.0) {
                const double c = t + shift(v), z = depth(c);
                const double one = exp(z), other = exp(c + (P - 1.0) * z);
                const double part = exp(P * (log(v) - log_goal + z));
                sum += part;
                slope += part * other / (one + (P - 1.0) * other);
            }
        }
        sum = team_sum(sum);
        slope = team_sum(slope);
        (sum > 1.0 ? low : high) = t;
        double next = t + log(sum) / P * sum / slope;
        if (!(next > low && next < high))
            next = low + (high - low) / 2.0;
        if (fabs(next - t) <= 0x1p-51 * (1.0 + fabs(t)))
            break;
        t = next;
    }
    for (int j = member; j < count; j += team) {
        const double v = value(j);
        const double left = goal > 0.0 && v > 0.0 ? fmin(v * exp(depth(t + shift(v))), v) : 0.0;
        to[j * geo.x.step] = rounded(copysign(left, get(from[j * geo.y.step])));
    }
}
