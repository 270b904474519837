// e^x of every lane of a vector, for x <= 0, to about one unit in the last place; NaN stays NaN.
// x = n log 2 + r with |r| <= log(2)/2 (Cody and Waite's two-part log 2), the Taylor series of e^r,
// and 2^n put into the exponent.  Below the smallest normal number's logarithm the result is 0.
#pragma once
#include <cstdint>

#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

template <typename T>
struct Exponential;

template <>
struct Exponential<float> {
  using Bits = int32_t;
  // 1.5 * 2^23: adding it rounds to a whole number
  static constexpr float least = -87.33654f, magic = 12582912.0f;
  static constexpr float log2_high = 0.693359375f, log2_low = -2.12194440e-4f;
  static constexpr int terms = 8, mantissa = 23, bias = 127;
};

template <>
struct Exponential<double> {
  using Bits = int64_t;
  static constexpr double least = -708.3964185322641, magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double log2_high = 0.693145751953125, log2_low = 1.42860682030941723212e-6;
  static constexpr int terms = 14, mantissa = 52, bias = 1023;
};

template <typename T, typename V>
KD_INLINE V exponential(V x) {
  using E = Exponential<T>;
  constexpr int kLanes = int(sizeof(V) / sizeof(T));
  typedef typename E::Bits Ints __attribute__((vector_size(sizeof(V))));
  static_assert(kLanes >= 1, "a vector of T");
  const V bounded = x < E::least ? V{} + E::least : x;  // a NaN stays
  const V rounded = bounded * T(1.4426950408889634) + E::magic;
  const V n = rounded - E::magic;
  const V r = (bounded - n * E::log2_high) - n * E::log2_low;
  T factorial[E::terms];
  factorial[0] = 1;
  for (int k = 1; k < E::terms; ++k) factorial[k] = factorial[k - 1] * T(k);
  V sum = V{} + T(1) / factorial[E::terms - 1];
  for (int k = E::terms - 2; k >= 0; --k) sum = sum * r + T(1) / factorial[k];
  // the low bits hold n
  const Ints exponent = (reinterpret_cast<Ints>(rounded) + E::bias) << E::mantissa;
  const V result = sum * reinterpret_cast<V>(exponent);
  return x < E::least ? V{} : result;
}

}  // namespace
}  // namespace kd::KD_ISA
