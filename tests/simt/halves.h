// float16 and bfloat16 in software: storage and conversions, rounded to nearest even.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace simt {

template <class To, class From> inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// The nearest number with `digits` significant bits above `least`; ties go to the even one.
inline double rounded(double value, int digits, int least) {
    if (value == 0 || !std::isfinite(value)) return value;
    int exponent;
    std::frexp(value, &exponent);
    const int unit = exponent - digits > least ? exponent - digits : least;
    return std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
}

inline uint16_t half_bits(double value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return 0x7fff;
    const double size = std::fabs(rounded(value, 11, -24));
    if (size >= 65536.0) return sign | 0x7c00;
    if (size < 0x1p-14) return sign | uint16_t(size * 0x1p24);
    int exponent;
    const double mantissa = std::frexp(size, &exponent);
    return sign | uint16_t(((exponent + 14) << 10) + (int(mantissa * 2048) - 1024));
}

inline float half_value(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(float(mantissa), -24);
    return sign * std::ldexp(float(mantissa + 1024), exponent - 25);
}

inline uint16_t bfloat_bits(float value) {
    if (std::isnan(value)) return 0x7fff;
    const uint32_t bits = bits_of<uint32_t>(value);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float bfloat_value(uint16_t bits) { return bits_of<float>(uint32_t(bits) << 16); }

}  // namespace simt

struct __half_raw { unsigned short x; };
struct __nv_bfloat16_raw { unsigned short x; };

struct alignas(2) __half {
    unsigned short __x;
    __half() = default;
    __half(float value) : __x(simt::half_bits(value)) {}
    __half(double value) : __x(simt::half_bits(value)) {}
    __half(__half_raw raw) : __x(raw.x) {}
    operator float() const { return simt::half_value(__x); }
};

struct alignas(2) __nv_bfloat16 {
    unsigned short __x;
    __nv_bfloat16() = default;
    __nv_bfloat16(float value) : __x(simt::bfloat_bits(value)) {}
    __nv_bfloat16(__nv_bfloat16_raw raw) : __x(raw.x) {}
    operator float() const { return simt::bfloat_value(__x); }
};

struct alignas(4) __half2 { __half x, y; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __half2float(__half a) { return float(a); }
inline __half __float2half(float a) { return __half(a); }
inline __half __float2half_rn(float a) { return __half(a); }
inline __half __double2half(double a) { return __half(a); }
inline unsigned short __half_as_ushort(__half a) { return a.__x; }
inline __half __ushort_as_half(unsigned short bits) { return __half_raw{bits}; }
inline float __low2float(__half2 a) { return float(a.x); }
inline float __high2float(__half2 a) { return float(a.y); }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline float2 __half22float2(__half2 a) { return {float(a.x), float(a.y)}; }
inline __half2 __float22half2_rn(float2 a) { return {__half(a.x), __half(a.y)}; }

inline float __bfloat162float(__nv_bfloat16 a) { return float(a); }
inline __nv_bfloat16 __float2bfloat16(float a) { return __nv_bfloat16(a); }
inline __nv_bfloat16 __float2bfloat16_rn(float a) { return __nv_bfloat16(a); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.__x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __nv_bfloat16_raw{bits}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return {__nv_bfloat16(a), __nv_bfloat16(b)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {float(a.x), float(a.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 a) {
    return {__nv_bfloat16(a.x), __nv_bfloat16(a.y)};
}
