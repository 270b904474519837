// clamp(gain * leaky(y)) on vectors, and its transpose, which the result alone tells.
#pragma once
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

template <typename T>
struct Activation {
  T slope, gain, limit;

  template <typename V>
  KD_INLINE V operator()(V y) const {
    const V zero{}, upper = zero + limit;
    const V z = (y > zero ? y : y * slope) * gain;
    const V capped = z > upper ? upper : z;  // a NaN stays
    return capped < -upper ? -upper : capped;
  }

  // grad times the derivative, which the result tells
  template <typename V>
  KD_INLINE V pulled_back(V out, V grad) const {
    const V zero{}, upper = zero + limit;
    const V factor = out > zero ? zero + gain : zero + gain * slope;
    const V inside = out >= upper ? zero : factor;
    return grad * (out <= -upper ? zero : inside);
  }
};

}  // namespace
}  // namespace kd::KD_ISA
