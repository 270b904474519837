// loss = sum over rows of 1 - <a, b> / q, q = |a| |b| + eps, and grad = (<a, b> |b| / (|a| q^2)) a
// - b / q, in every group.
// Truth: kdistill/backends/reference/row_cosine_distance.py
//   syn, real, grad [g, p], rows [r, 2] (offset, length; ascending, not overlapping), mask [p], [g,
//   p] (mask_per_group) or null, loss [g], values [g, r]: row-major, contiguous, not overlapping.
// One pass: a row is summed and then written while it is in the first cache; what lies between the
// rows is set to zero.  A row belongs to one thread, and the values are added in order: no bit
// depends on the number of threads.
#include "common/check.hpp"
#include "cpu/ops.hpp"
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

// elements under which waking a second thread costs more than it saves
constexpr int64_t kGrain = 1 << 15;
// of each of the three sums: six independent fused multiply-adds
constexpr int64_t kChains = 2;

struct RowSums {
  double dot, a, b, mask_sum;
};

template <bool masked, typename T>
RowSums sums_of_row(const T* syn, const T* real, const T* mask, int64_t n) {
  Wide dot[kChains] = {}, a_sum[kChains] = {}, b_sum[kChains] = {}, mask_sum[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    for (int64_t chain = 0; chain < kChains; ++chain) {
      const int64_t at = i + chain * kLanes;
      auto a = load(syn + at), b = load(real + at);
      if (masked) {
        const auto keep = load(mask + at);
        a *= keep;
        b *= keep;
        mask_sum[chain] += widened(keep);
      }
      const Wide wide_a = widened(a), wide_b = widened(b);
      dot[chain] += wide_a * wide_b;
      a_sum[chain] += wide_a * wide_a;
      b_sum[chain] += wide_b * wide_b;
    }
  }
  RowSums tail = {0, 0, 0, 0};
  for (; i < n; ++i) {
    const T keep = masked ? mask[i] : T(1);
    const double a = double(T(keep * syn[i])), b = double(T(keep * real[i]));
    tail.dot += a * b;
    tail.a += a * a;
    tail.b += b * b;
    tail.mask_sum += double(keep);
  }
  return {sum_of(dot[0] + dot[1]) + tail.dot, sum_of(a_sum[0] + a_sum[1]) + tail.a,
          sum_of(b_sum[0] + b_sum[1]) + tail.b, sum_of(mask_sum[0] + mask_sum[1]) + tail.mask_sum};
}

template <typename T>
void zero(T* from, const T* to) {
  for (; from < to; ++from) *from = T(0);
}

template <bool masked, typename T>
double distance_of_row(const T* syn, const T* real, const T* mask, T* grad, int64_t n, double eps) {
  const RowSums sums = sums_of_row<masked>(syn, real, mask, n);
  const double norm_a = __builtin_sqrt(sums.a), norm_b = __builtin_sqrt(sums.b),
               q = norm_a * norm_b + eps;
  const T along_a = norm_a > 0 ? T(sums.dot * norm_b / (norm_a * q * q)) : T(0), along_b = T(1 / q);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T v = along_a * syn[i] - along_b * real[i];
    grad[i] = masked ? mask[i] * v : v;
  }
  return masked && !(sums.mask_sum > 0) ? 0.0 : 1.0 - sums.dot / q;
}

}  // namespace

template <typename T>
void row_cosine_distance(const T* syn, const T* real, const int64_t* rows, const T* mask,
                         double* loss, T* grad, double* values, int64_t g, int64_t p, int64_t r,
                         bool mask_per_group, double eps, int threads) {
  KD_CHECK(g >= 0 && p >= 0 && r >= 0 && threads > 0,
           "row_cosine_distance: expected sizes >= 0 and threads > 0");
  if (r == 0) zero(grad, grad + g * p);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8) if (g * p > kGrain)
  for (int64_t unit = 0; unit < g * r; ++unit) {
    const int64_t group = unit / r, row = unit % r, offset = rows[2 * row], n = rows[2 * row + 1],
                  at = group * p + offset;
    T* of_group = grad + group * p;
    zero(of_group + (row ? rows[2 * row - 2] + rows[2 * row - 1] : 0), of_group + offset);
    if (row == r - 1) zero(of_group + offset + n, of_group + p);
    const T* keep = mask ? mask + (mask_per_group ? at : offset) : mask;
    values[unit] = mask ? distance_of_row<true>(syn + at, real + at, keep, grad + at, n, eps)
                        : distance_of_row<false>(syn + at, real + at, keep, grad + at, n, eps);
  }
  for (int64_t group = 0; group < g; ++group) {
    double sum = 0;
    for (int64_t row = 0; row < r; ++row) sum += values[group * r + row];
    loss[group] = sum;
  }
}

KD_INSTANTIATE(row_cosine_distance)

}  // namespace kd::KD_ISA
