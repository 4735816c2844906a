// simplex: projects groups of float32 arrays on a GPU.
//
// a block of threads takes a group
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
    long long extent, count;
    Place y, x;
};

__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }
__device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }

__device__ __forceinline__ double get(float x) { return x; }
__device__ __forceinline__ float rounded(double x) { return (float)x; }

// How a value counts: as it is.
__device__ __forceinline__ double counted(double x) { return x; }

// Over the threads of a block, in a fixed order: all of them have the result.
__device__ __forceinline__ double team_sum(double a)
{
    __shared__ double parts[32];
    for (int away = 16; away > 0; away /= 2)
        a = a + __shfl_xor_sync(WARP, a, away);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = a;
    __syncthreads();
    double joined = parts[0];
    for (int i = 1; i < (int)blockDim.x / 32; ++i)
        joined = joined + parts[i];
    __syncthreads();  // the next join may overwrite the parts
    return joined;
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

// Their order as integers is that of the numbers.
__device__ __forceinline__ long long ordered(double x)
{
    const long long bits = __double_as_longlong(x);
    return bits < 0 ? bits ^ 0x7fffffffffffffffll : bits;
}

__device__ __forceinline__ double number(long long order)
{
    return __longlong_as_double(order < 0 ? order ^ 0x7fffffffffffffffll : order);
}

// Up: the groups' values.
extern "C" __global__ void __launch_bounds__(256, 1)
aggregate(const float* __restrict__ y, double* __restrict__ total, const long long* __restrict__ index, Geometry geo)
{
    const int team = blockDim.x, member = threadIdx.x;
    const unsigned group = blockIdx.x;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const float* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[j * geo.y.step])); };
    double sum = 0.0;
    for (int j = member; j < count; j += team)
        sum += value(j) > 0.0 ? value(j) : value(j) * 0.0;
    const double found = team_sum(sum);
    if (member == 0)
        total[group] = found;
}

// Down: the groups in their balls.
extern "C" __global__ void __launch_bounds__(256, 1)
project(const float* y, float* x, const double* __restrict__ total, const double* __restrict__ radii, double radius, const long long* __restrict__ index, Geometry geo)
{
    const int team = blockDim.x, member = threadIdx.x;
    const unsigned group = blockIdx.x;
    const unsigned outer = group;
    const int count = (int)geo.count;
    const float* from = y + first(geo.y, index, outer, (unsigned)geo.extent);
    float* to = x + first(geo.x, index, outer, (unsigned)geo.extent);
    const auto value = [&](int j) { return counted(get(from[j * geo.y.step])); };
    double u = radii ? radii[group] : radius;
    if (!(u >= 0.0 && total[group] < infinity()))
        u = not_a_number();
    if (!(u < infinity())) {
        for (int j = member; j < count; j += team)
            to[j * geo.x.step] = rounded(not_a_number());
        return;
    }
    const double goal = u;
    long long order = ordered(-infinity());
    for (int j = member; j < count; j += team)
        order = max(order, ordered(value(j)));
    const double top = number(team_max(order));
    double t = -goal, last = 0.0;
    while (goal > 0.0) {
        double excess = 0.0, above = 0.0;
        for (int j = member; j < count; j += team) {
            const double left = (value(j) - top) - t;
            if (left > 0.0) {
                excess += left;
                above += 1.0;
            }
        }
        excess = team_sum(excess) - goal;
        above = team_sum(above);
        if (above > 0.0)
            t += fmax(excess / above, 0.0);
        if (above == last || !(above > 0.0))
            break;
        last = above;
    }
    for (int j = member; j < count; j += team) {
        const double v = value(j);
        const double left = fmax((v - top) - t, 0.0);
        to[j * geo.x.step] = rounded(left);
    }
}
