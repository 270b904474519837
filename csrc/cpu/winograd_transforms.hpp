// The one-dimensional transforms of Winograd's convolutions, on vectors of channels:
// y = A' [(G w G') * (B' x B)] A.  Points 0, +-5/8, +-3/2, infinity: exact in binary, half the
// rounding error of 0, +-1, +-2.
//   SameSize   F(4x4, 3x3), six planes along an axis
//   Doubling   a transposed convolution of stride 2 of four entries, which has nine results.  The
//              five even ones are a product of the polynomials x and w0 + w2 s (the five finite
//              points), the odd ones x times w1: nine planes, and six of filters, because the last
//              four share theirs
//   Halving    the transpose of Doubling: a convolution of stride 2
// Derivation: docs/ops/winograd_conv.md and styled_conv.md
#pragma once
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr double a = 0.625, b = 1.5, a2 = a * a, b2 = b * b;
constexpr double na = 1 / (2 * a2 * (a2 - b2)), nb = 1 / (2 * b2 * (b2 - a2)), n0 = 1 / (a2 * b2);

// from(i) reads entry i, to(i, v) writes it; T is the element.
//   reads, results: entries along an axis of a tile
//   read_step, result_step: from one tile to the next
//   input: from the entries read to the planes; output: from products of the planes to the results
//   weight: from the taps to six planes, and weight_transpose: its transpose
//   gradient: the transpose of output
struct SameSize {
  static constexpr int reads = 6, planes = 6, results = 4, read_step = 4, result_step = 4;

  static int64_t size_of(int64_t in, int64_t padding) { return in + 2 * padding - 2; }
  static int64_t tiles_of(int64_t out) { return (out + 3) / 4; }
  static constexpr int filter_of(int plane) { return plane; }

  template <typename T, typename From, typename To>
  static KD_INLINE void input(const From& from, const To& to) {  // B'
    const auto d1 = from(1), d2 = from(2), d3 = from(3), d4 = from(4);
    to(0, T(a2 * b2) * from(0) - T(a2 + b2) * d2 + d4);
    to(5, T(a2 * b2) * d1 - T(a2 + b2) * d3 + from(5));
    const auto ea = d4 - T(b2) * d2, oa = T(a) * (d3 - T(b2) * d1), eb = d4 - T(a2) * d2,
               ob = T(b) * (d3 - T(a2) * d1);
    to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void output(const From& from, const To& to) {  // A'
    const auto pa = from(1) + from(2), ma = from(1) - from(2), pb = from(3) + from(4),
               mb = from(3) - from(4);
    to(0, from(0) + pa + pb);
    to(1, T(a) * ma + T(b) * mb);
    to(2, T(a2) * pa + T(b2) * pb);
    to(3, T(a * a2) * ma + T(b * b2) * mb + from(5));
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void gradient(const From& from, const To& to) {  // A
    const auto y0 = from(0), y1 = from(1), y2 = from(2), y3 = from(3);
    to(0, y0), to(5, y3);
    const auto ea = y0 + T(a2) * y2, oa = T(a) * y1 + T(a * a2) * y3, eb = y0 + T(b2) * y2,
               ob = T(b) * y1 + T(b * b2) * y3;
    to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void weight(const From& from, const To& to) {  // G
    const auto g0 = from(0), g1 = from(1), g2 = from(2);
    to(0, T(n0) * g0), to(5, g2);
    const auto ea = T(na) * g0 + T(na * a2) * g2, oa = T(na * a) * g1,
               eb = T(nb) * g0 + T(nb * b2) * g2, ob = T(nb * b) * g1;
    to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void weight_transpose(const From& from, const To& to) {  // G'
    const auto pa = T(na) * (from(1) + from(2)), ma = T(na * a) * (from(1) - from(2));
    const auto pb = T(nb) * (from(3) + from(4)), mb = T(nb * b) * (from(3) - from(4));
    to(0, T(n0) * from(0) + pa + pb);
    to(1, ma + mb);
    to(2, T(a2) * pa + T(b2) * pb + from(5));
  }
};

struct Doubling {
  static constexpr int reads = 4, planes = 9, results = 9, read_step = 4, result_step = 8;

  static int64_t size_of(int64_t in, int64_t) { return 2 * in + 1; }
  // the last result of a tile is the next one's first, too
  static int64_t tiles_of(int64_t out) { return (out + 6) / 8; }
  static constexpr int filter_of(int plane) { return plane < 5 ? plane : 5; }

  template <typename T, typename From, typename To>
  static KD_INLINE void input(const From& from, const To& to) {
    const auto x0 = from(0), x1 = from(1), x2 = from(2), x3 = from(3);
    const auto ea = x0 + T(a2) * x2, oa = T(a) * x1 + T(a * a2) * x3, eb = x0 + T(b2) * x2,
               ob = T(b) * x1 + T(b * b2) * x3;
    to(0, x0), to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
    to(5, x0), to(6, x1), to(7, x2), to(8, x3);
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void output(const From& from, const To& to) {
    const auto p0 = from(0), pa = from(1) + from(2), ma = from(1) - from(2), pb = from(3) + from(4),
               mb = from(3) - from(4);
    to(0, T(a2 * b2) * p0);
    to(2, T(-a * b2) * ma - T(a2 * b) * mb);
    to(4, T(-(a2 + b2)) * p0 - T(b2) * pa - T(a2) * pb);
    to(6, T(a) * ma + T(b) * mb);
    to(8, p0 + pa + pb);
    to(1, from(5)), to(3, from(6)), to(5, from(7)), to(7, from(8));
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void gradient(const From& from, const To& to) {
    const auto d1 = from(2), d2 = from(4), d3 = from(6), d4 = from(8);
    to(0, T(a2 * b2) * from(0) - T(a2 + b2) * d2 + d4);
    const auto ea = d4 - T(b2) * d2, oa = T(a) * (d3 - T(b2) * d1), eb = d4 - T(a2) * d2,
               ob = T(b) * (d3 - T(a2) * d1);
    to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
    to(5, from(1)), to(6, from(3)), to(7, from(5)), to(8, from(7));
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void weight(const From& from, const To& to) {
    const auto g0 = from(0), g2 = from(2);
    to(0, T(n0) * g0), to(5, from(1));
    const auto ea = T(na) * g0, oa = T(na * a) * g2, eb = T(nb) * g0, ob = T(nb * b) * g2;
    to(1, ea + oa), to(2, ea - oa), to(3, eb + ob), to(4, eb - ob);
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void weight_transpose(const From& from, const To& to) {
    to(0, T(n0) * from(0) + T(na) * (from(1) + from(2)) + T(nb) * (from(3) + from(4)));
    to(1, from(5));
    to(2, T(na * a) * (from(1) - from(2)) + T(nb * b) * (from(3) - from(4)));
  }
};

struct Halving {
  static constexpr int reads = 9, planes = 9, results = 4, read_step = 8, result_step = 4;

  static int64_t size_of(int64_t in, int64_t) { return (in - 1) / 2; }
  static int64_t tiles_of(int64_t out) { return (out + 3) / 4; }
  static constexpr int filter_of(int plane) { return Doubling::filter_of(plane); }

  template <typename T, typename From, typename To>
  static KD_INLINE void input(const From& from, const To& to) {
    Doubling::gradient<T>(from, to);
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void output(const From& from, const To& to) {
    const auto pa = from(1) + from(2), ma = from(1) - from(2), pb = from(3) + from(4),
               mb = from(3) - from(4);
    to(0, from(0) + pa + pb + from(5));
    to(1, T(a) * ma + T(b) * mb + from(6));
    to(2, T(a2) * pa + T(b2) * pb + from(7));
    to(3, T(a * a2) * ma + T(b * b2) * mb + from(8));
  }

  template <typename T, typename From, typename To>
  static KD_INLINE void weight(const From& from, const To& to) {
    Doubling::weight<T>(from, to);
  }
};

#define KD_TRANSFORM(name)             \
  [](const auto& from, const auto& to) \
      __attribute__((always_inline)) { Scheme::template name<T>(from, to); }

// The transform on columns, then on rows: read(i, j) of rows x rows entries, write(i, j, value) of
// results x results.
template <int rows, int results, typename V, typename Transform, typename Read, typename Write>
KD_INLINE void both_sides(const Transform& transform, const Read& read, const Write& write) {
  V half[results][rows];
  for (int j = 0; j < rows; ++j) {
    transform([&](int i) __attribute__((always_inline)) { return V(read(i, j)); },
              [&](int i, V v) __attribute__((always_inline)) { half[i][j] = v; });
  }
  for (int i = 0; i < results; ++i) {
    transform([&](int j) __attribute__((always_inline)) { return half[i][j]; },
              [&](int j, V v) __attribute__((always_inline)) { write(i, j, v); });
  }
}

}  // namespace
}  // namespace kd::KD_ISA
