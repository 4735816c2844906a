// CUDA's arithmetic intrinsics that generated kernels use, bit for bit where CUDA defines the bits.
#pragma once
#include <cfenv>
#include <cmath>
#include <cstdint>
#include "halves.h"

inline int __float_as_int(float a) { return simt::bits_of<int>(a); }
inline unsigned __float_as_uint(float a) { return simt::bits_of<unsigned>(a); }
inline float __int_as_float(int a) { return simt::bits_of<float>(a); }
inline float __uint_as_float(unsigned a) { return simt::bits_of<float>(a); }
inline long long __double_as_longlong(double a) { return simt::bits_of<long long>(a); }
inline double __longlong_as_double(long long a) { return simt::bits_of<double>(a); }
inline int __double2hiint(double a) { return int(__double_as_longlong(a) >> 32); }
inline int __double2loint(double a) { return int(__double_as_longlong(a)); }
inline double __hiloint2double(int hi, int lo) {
    return __longlong_as_double((long long)(uint64_t(uint32_t(hi)) << 32 | uint32_t(lo)));
}

namespace simt {

// The float on the asked side of a double, or next to it where the nearest is on the other.
inline float toward(double value, bool up) {
    const float nearest = float(value);
    if (std::isnan(value) || double(nearest) == value) return nearest;
    if (up) return double(nearest) < value ? std::nextafterf(nearest, INFINITY) : nearest;
    return double(nearest) > value ? std::nextafterf(nearest, -INFINITY) : nearest;
}

}  // namespace simt

inline float __double2float_rn(double a) { return float(a); }
inline float __double2float_ru(double a) { return simt::toward(a, true); }
inline float __double2float_rd(double a) { return simt::toward(a, false); }
inline float __double2float_rz(double a) { return simt::toward(a, a < 0); }

// Single rounded operations, which the compiler of a GPU does not contract.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
// a*b, a+b rounded down and up: through the exact double, which products and most sums have.
inline float __fmul_rd(float a, float b) { return simt::toward(double(a) * double(b), false); }
inline float __fmul_ru(float a, float b) { return simt::toward(double(a) * double(b), true); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }
inline float __saturatef(float a) { return std::fmin(std::fmax(a, 0.0f), 1.0f); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __clz(int a) { return a ? __builtin_clz(unsigned(a)) : 32; }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline unsigned __brev(unsigned a) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (a >> i & 1u) << (31 - i);
    return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

// CUDA has min and max without a namespace, for mixed signedness too; a NaN loses.
template <class A, class B> inline auto min(A a, B b) -> decltype(a + b) {
    using C = decltype(a + b);
    if constexpr (C(0.5) != C(0)) return std::fmin(C(a), C(b));
    else return C(a) < C(b) ? C(a) : C(b);
}
template <class A, class B> inline auto max(A a, B b) -> decltype(a + b) {
    using C = decltype(a + b);
    if constexpr (C(0.5) != C(0)) return std::fmax(C(a), C(b));
    else return C(a) > C(b) ? C(a) : C(b);
}
