// The one-dimensional maps of Winograd's F(4x4, 3x3), on vectors of channels: y = A' [(G w G') * (B' x B)] A.
// Points 0, +-5/8, +-3/2, infinity: exact in binary, half the rounding error of 0, +-1, +-2.
// Derivation: docs/ops/winograd_conv.md
#pragma once
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr double a = 0.625, b = 1.5, a2 = a * a, b2 = b * b;
constexpr double na = 1 / (2 * a2 * (a2 - b2)), nb = 1 / (2 * b2 * (b2 - a2)), n0 = 1 / (a2 * b2);

// The one-dimensional maps: from(i) reads entry i, to(i, v) writes it; T is the element, V a vector of it.
template <typename T, typename From, typename To>
KD_INLINE void input_map(const From& from, const To& to) {  // B'
  const auto d1 = from(1), d2 = from(2), d3 = from(3), d4 = from(4);
  to(0, T(a2 * b2) * from(0) - T(a2 + b2) * d2 + d4);
  to(5, T(a2 * b2) * d1 - T(a2 + b2) * d3 + from(5));
  const auto ea = d4 - T(b2) * d2, oa = T(a) * (d3 - T(b2) * d1), eb = d4 - T(a2) * d2, ob = T(b) * (d3 - T(a2) * d1);
  to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
}

template <typename T, typename From, typename To>
KD_INLINE void output_map(const From& from, const To& to) {  // A'
  const auto pa = from(1) + from(2), ma = from(1) - from(2), pb = from(3) + from(4), mb = from(3) - from(4);
  to(0, from(0) + pa + pb);
  to(1, T(a) * ma + T(b) * mb);
  to(2, T(a2) * pa + T(b2) * pb);
  to(3, T(a * a2) * ma + T(b * b2) * mb + from(5));
}

template <typename T, typename From, typename To>
KD_INLINE void output_map_transposed(const From& from, const To& to) {  // A
  const auto y0 = from(0), y1 = from(1), y2 = from(2), y3 = from(3);
  to(0, y0), to(5, y3);
  const auto ea = y0 + T(a2) * y2, oa = T(a) * y1 + T(a * a2) * y3, eb = y0 + T(b2) * y2, ob = T(b) * y1 + T(b * b2) * y3;
  to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
}

template <typename T, typename From, typename To>
KD_INLINE void weight_map(const From& from, const To& to) {  // G
  const auto g0 = from(0), g1 = from(1), g2 = from(2);
  to(0, T(n0) * g0), to(5, g2);
  const auto ea = T(na) * g0 + T(na * a2) * g2, oa = T(na * a) * g1, eb = T(nb) * g0 + T(nb * b2) * g2, ob = T(nb * b) * g1;
  to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
}

template <typename T, typename From, typename To>
KD_INLINE void weight_map_transposed(const From& from, const To& to) {  // G'
  const auto pa = T(na) * (from(1) + from(2)), ma = T(na * a) * (from(1) - from(2));
  const auto pb = T(nb) * (from(3) + from(4)), mb = T(nb * b) * (from(3) - from(4));
  to(0, T(n0) * from(0) + pa + pb);
  to(1, ma + mb);
  to(2, T(a2) * pa + T(b2) * pb + from(5));
}

#define KD_MAP(name) [](const auto& from, const auto& to) __attribute__((always_inline)) { name<T>(from, to); }

// The map on columns, then on rows: read(i, j) of rows x rows entries, write(i, j, value) of results x results.
template <int rows, int results, typename V, typename Map, typename Read, typename Write>
KD_INLINE void both_sides(const Map& map, const Read& read, const Write& write) {
  V half[results][rows];
  for (int j = 0; j < rows; ++j) {
    map([&](int i) __attribute__((always_inline)) { return V(read(i, j)); },
        [&](int i, V v) __attribute__((always_inline)) { half[i][j] = v; });
  }
  for (int i = 0; i < results; ++i) {
    map([&](int j) __attribute__((always_inline)) { return half[i][j]; },
        [&](int j, V v) __attribute__((always_inline)) { write(i, j, v); });
  }
}

}  // namespace
}  // namespace kd::KD_ISA
