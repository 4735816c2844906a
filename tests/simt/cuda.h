// CUDA C++ for a host compiler: a generated kernel compiles against this as it is.
#pragma once
#include <math.h>
#include <type_traits>
#include "engine.h"
#include "vectors.h"
#include "arithmetic.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ [[gnu::noinline]]
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)
// One block runs at a time, so that its memory is static; the machine finds it by its section.
#define __shared__ static __attribute__((section("simt_shared")))

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())
#define warpSize 32

#define __syncthreads() ((void)simt::barrier(false, __LINE__))
#define __syncthreads_count(p) (simt::barrier((p) != 0, __LINE__))
#define __syncthreads_or(p) (simt::barrier((p) != 0, __LINE__) != 0)
#define __syncthreads_and(p) (simt::barrier((p) == 0, __LINE__) == 0)
#define __syncwarp(...) (simt::warp_barrier(simt::mask_or_all(__VA_ARGS__), __LINE__))
#define __threadfence() (simt::fence(true, __LINE__))
#define __threadfence_block() (simt::fence(false, __LINE__))

#ifdef SIMT_HOOKED  // atomics are announced, and then go unseen
#define SIMT_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define SIMT_UNSEEN
#endif

namespace simt {

inline unsigned mask_or_all(unsigned mask = 0xffffffffu) { return mask; }

// Shuffles

template <class T> inline uint64_t widened(T value) {
    static_assert(sizeof(T) <= 8);
    uint64_t wide = 0;
    __builtin_memcpy(&wide, &value, sizeof value);
    return wide;
}

// The value of lane `source`, or the own one where that is beyond the segment of `width` lanes.
template <class T>
inline T shuffle(unsigned mask, const char* name, T value, int source, int width, int line) {
    uint64_t values[32];
    const int own = int(lane());
    if (width < 1 || width > 32 || (width & (width - 1))) fail(line, "%s: width %d", name, width);
    exchange(mask, name, widened(value), values, line);
    const int first = own & ~(width - 1);
    if (source < first || source >= first + width) source = own;
    if (!(mask >> source & 1)) fail(line, "%s reads lane %d, outside mask %#x", name, source, mask);
    __builtin_memcpy(&value, &values[source], sizeof value);
    return value;
}

template <class T> inline T shuffle_index(unsigned m, T v, int l, int line, int w = 32) {
    return shuffle(m, "__shfl_sync", v, (int(lane()) & ~(w - 1)) | (l & (w - 1)), w, line);
}
template <class T> inline T shuffle_up(unsigned m, T v, unsigned d, int line, int w = 32) {
    return shuffle(m, "__shfl_up_sync", v, int(lane()) - int(d), w, line);
}
template <class T> inline T shuffle_down(unsigned m, T v, unsigned d, int line, int w = 32) {
    return shuffle(m, "__shfl_down_sync", v, int(lane()) + int(d), w, line);
}
template <class T> inline T shuffle_xor(unsigned m, T v, int b, int line, int w = 32) {
    return shuffle(m, "__shfl_xor_sync", v, int(lane()) ^ b, w, line);
}

// Votes and reductions

inline unsigned ballot(unsigned mask, bool predicate, const char* name, int line) {
    uint64_t values[32];
    exchange(mask, name, predicate, values, line);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) votes |= unsigned(values[i]) << i;
    return votes;
}

template <class T, class Join>
inline T reduce(unsigned mask, T value, Join join, const char* name, int line) {
    uint64_t values[32];
    exchange(mask, name, widened(value), values, line);
    bool first = true;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) {
            T other;
            __builtin_memcpy(&other, &values[i], sizeof other);
            value = first ? other : join(value, other);
            first = false;
        }
    return value;
}

// Atomics: no order of memory comes with them, as with CUDA's.

template <class T, class Update>
SIMT_UNSEEN inline T atomically(T* p, std::type_identity_t<T> value, Update update, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    if (uintptr_t(p) % sizeof(T)) fail(line, "an atomic at a misaligned address");
    before_atomic(p, sizeof(T), line);
    Bits* cell = reinterpret_cast<Bits*>(p);
    Bits old = __atomic_load_n(cell, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(cell, &old, bits_of<Bits>(T(update(bits_of<T>(old), value))),
                                        false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return bits_of<T>(old);
}

// Loads and stores with a cache hint

template <class T> inline void check_aligned(const T* p, int line) {
    if (uintptr_t(p) % alignof(T)) fail(line, "a misaligned access of %zu bytes", sizeof(T));
}
template <class T> inline T load(const T* p, int line) {
    check_aligned(p, line);
    return *p;
}
template <class T> inline void store(T* p, std::type_identity_t<T> value, int line) {
    check_aligned(p, line);
    *p = value;
}

}  // namespace simt

#define __shfl_sync(m, v, l, ...) simt::shuffle_index(m, v, l, __LINE__, ##__VA_ARGS__)
#define __shfl_up_sync(m, v, d, ...) simt::shuffle_up(m, v, d, __LINE__, ##__VA_ARGS__)
#define __shfl_down_sync(m, v, d, ...) simt::shuffle_down(m, v, d, __LINE__, ##__VA_ARGS__)
#define __shfl_xor_sync(m, v, b, ...) simt::shuffle_xor(m, v, b, __LINE__, ##__VA_ARGS__)

#define __ballot_sync(m, p) simt::ballot(m, (p) != 0, "__ballot_sync", __LINE__)
#define __any_sync(m, p) (simt::ballot(m, (p) != 0, "__any_sync", __LINE__) != 0)
#define __all_sync(m, p) (simt::ballot(m, (p) == 0, "__all_sync", __LINE__) == 0)
#define SIMT_REDUCE(m, v, name, expression) \
    simt::reduce(m, v, [](auto a, auto b) { return expression; }, name, __LINE__)
#define __reduce_add_sync(m, v) SIMT_REDUCE(m, v, "__reduce_add_sync", a + b)
#define __reduce_max_sync(m, v) SIMT_REDUCE(m, v, "__reduce_max_sync", a > b ? a : b)
#define __reduce_min_sync(m, v) SIMT_REDUCE(m, v, "__reduce_min_sync", a < b ? a : b)
#define __reduce_or_sync(m, v) SIMT_REDUCE(m, v, "__reduce_or_sync", a | b)
#define __reduce_and_sync(m, v) SIMT_REDUCE(m, v, "__reduce_and_sync", a & b)

#define SIMT_ATOMIC(p, v, expression) \
    simt::atomically(p, v, [](auto old, auto value) { return expression; }, __LINE__)
#define atomicAdd(p, v) SIMT_ATOMIC(p, v, old + value)
#define atomicSub(p, v) SIMT_ATOMIC(p, v, old - value)
#define atomicMax(p, v) SIMT_ATOMIC(p, v, old > value ? old : value)
#define atomicMin(p, v) SIMT_ATOMIC(p, v, old < value ? old : value)
#define atomicOr(p, v) SIMT_ATOMIC(p, v, old | value)
#define atomicAnd(p, v) SIMT_ATOMIC(p, v, old & value)
#define atomicExch(p, v) SIMT_ATOMIC(p, v, (void(old), value))
#define atomicInc(p, v) SIMT_ATOMIC(p, v, old >= value ? 0u : old + 1u)
#define atomicDec(p, v) SIMT_ATOMIC(p, v, old == 0u || old > value ? value : old - 1u)
#define atomicCAS(p, expected, v)                                                            \
    simt::atomically(                                                                        \
        p, v, [e = (expected)](auto old, auto value) { return old == e ? value : old; }, __LINE__)

#define __ldg(p) simt::load(p, __LINE__)
#define __ldcg(p) simt::load(p, __LINE__)
#define __ldca(p) simt::load(p, __LINE__)
#define __ldcs(p) simt::load(p, __LINE__)
#define __ldlu(p) simt::load(p, __LINE__)
#define __ldcv(p) simt::load(p, __LINE__)
#define __stcg(p, v) simt::store(p, v, __LINE__)
#define __stcs(p, v) simt::store(p, v, __LINE__)
#define __stwb(p, v) simt::store(p, v, __LINE__)
#define __stwt(p, v) simt::store(p, v, __LINE__)
