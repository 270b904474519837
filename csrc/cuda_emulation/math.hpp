// CUDA's mathematical functions that <math.h> lacks.  The fast intrinsics (__expf, ...) are the
// accurate functions here.
#pragma once
#include <math.h>
#include <stdlib.h>

#include <cstring>

// glibc 2.42 declares these two itself
#if !defined(__GLIBC__) || !__GLIBC_PREREQ(2, 42)
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrtf(float x) { return float(1.0 / sqrt(double(x))); }
#endif
inline float rsqrt(float x) { return float(1.0 / sqrt(double(x))); }

// macros, because glibc's headers declare functions of these names that its library does not offer
#define __expf(x) ::expf(x)
#define __exp10f(x) ::exp10f(x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __log10f(x) ::log10f(x)
#define __powf(x, y) ::powf(x, y)
#define __sinf(x) ::sinf(x)
#define __cosf(x) ::cosf(x)
#define __tanf(x) ::tanf(x)
#define __sincosf(x, sine, cosine) ::sincosf(x, sine, cosine)

inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
// NaN becomes 0, as on the device
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned int __umulhi(unsigned int x, unsigned int y) {
  return unsigned((static_cast<unsigned long long>(x) * y) >> 32);
}

#define KD_BITS_AS(name, From, To)       \
  inline To name(From x) {               \
    To bits;                             \
    std::memcpy(&bits, &x, sizeof bits); \
    return bits;                         \
  }
KD_BITS_AS(__float_as_int, float, int)
KD_BITS_AS(__float_as_uint, float, unsigned int)
KD_BITS_AS(__int_as_float, int, float)
KD_BITS_AS(__uint_as_float, unsigned int, float)
KD_BITS_AS(__double_as_longlong, double, long long)
KD_BITS_AS(__longlong_as_double, long long, double)
#undef KD_BITS_AS

#define KD_MIN_MAX(T)                              \
  inline T min(T x, T y) { return y < x ? y : x; } \
  inline T max(T x, T y) { return x < y ? y : x; }
KD_MIN_MAX(int)
KD_MIN_MAX(unsigned int)
KD_MIN_MAX(long)
KD_MIN_MAX(unsigned long)
KD_MIN_MAX(long long)
KD_MIN_MAX(unsigned long long)
#undef KD_MIN_MAX
// the number, where the other one is NaN
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }
