// A minimal __nv_bfloat16: storage and conversions, rounding to nearest even.  Arithmetic goes
// through float, as kernels should.
#pragma once
#include <cstdint>
#include <cstring>

#include "cuda_emulation/types.hpp"

struct __nv_bfloat16 {
  std::uint16_t bits;

  __nv_bfloat16() = default;  // shared memory has no constructors
  __nv_bfloat16(float value) {
    std::uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    const std::uint32_t up = 0x7fffu + ((wide >> 16) & 1u);
    bits = value != value ? 0x7fff : std::uint16_t((wide + up) >> 16);
  }
  operator float() const {
    const std::uint32_t wide = std::uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};
using nv_bfloat16 = __nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return float(value); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
  return make_float2(float(value.x), float(value.y));
}
