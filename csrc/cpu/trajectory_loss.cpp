// loss = |M(final - target)|^2 / D, D = |M(start - target)|^2, grad = 2 M(final - target) / D of
// each row.
// Truth: kdistill/backends/reference/trajectory_loss.py
//   final, target, start, grad [g, p], mask [p], [g, p] (mask_per_row) or null, loss and
//   denominator [g], partials [g, ceil(p / kBlock), 2]: row-major, contiguous, not overlapping.
// Two passes, because D is not known before the end of the first: it reads the three (four) arrays
// and writes M(final - target) into grad, the second scales grad in place.  Reading the inputs
// again would move as much without a mask, and more with one.  The blocks are added in order, in
// float64: no bit depends on the number of threads.
#include "common/check.hpp"
#include "cpu/ops.hpp"
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kBlock = 4096;  // elements per unit
// elements under which waking a second thread costs more than it saves
constexpr int64_t kGrain = 1 << 16;
// independent sums: a fused multiply-add takes four cycles and two start in each
constexpr int64_t kChains = 4;

template <bool masked, typename T>
void loss_block(const T* final, const T* target, const T* start, const T* mask, T* grad, int64_t n,
                double* sums) {
  Wide left_sum[kChains] = {}, whole_sum[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    for (int64_t chain = 0; chain < kChains; ++chain) {
      const int64_t at = i + chain * kLanes;
      const auto targets = load(target + at);
      auto left = load(final + at) - targets, whole = load(start + at) - targets;
      if (masked) {
        const auto keep = load(mask + at);
        left *= keep;
        whole *= keep;
      }
      store(grad + at, left);
      const Wide wide_left = widened(left), wide_whole = widened(whole);
      left_sum[chain] += wide_left * wide_left;
      whole_sum[chain] += wide_whole * wide_whole;
    }
  }
  double tail_left = 0, tail_whole = 0;
  for (; i < n; ++i) {
    const T keep = masked ? mask[i] : T(1);
    const T left = keep * (final[i] - target[i]), whole = keep * (start[i] - target[i]);
    grad[i] = left;
    tail_left += double(left) * double(left);
    tail_whole += double(whole) * double(whole);
  }
  sums[0] = sum_of((left_sum[0] + left_sum[1]) + (left_sum[2] + left_sum[3])) + tail_left;
  sums[1] = sum_of((whole_sum[0] + whole_sum[1]) + (whole_sum[2] + whole_sum[3])) + tail_whole;
}

template <typename T>
void scale_block(T* grad, T factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) grad[i] *= factor;
}

}  // namespace

template <typename T>
void trajectory_loss(const T* final, const T* target, const T* start, const T* mask, double* loss,
                     T* grad, double* denominator, double* partials, int64_t g, int64_t p,
                     bool mask_per_row, int threads) {
  KD_CHECK(g >= 0 && p >= 0 && threads > 0, "trajectory_loss: expected sizes >= 0 and threads > 0");
  const int64_t blocks = (p + kBlock - 1) / kBlock;
#pragma omp parallel num_threads(threads) if (g * p > kGrain)
  {
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < g * blocks; ++unit) {
      const int64_t row = unit / blocks, from = (unit % blocks) * kBlock, at = row * p + from;
      const int64_t n = p - from < kBlock ? p - from : kBlock;
      if (mask) {
        const T* keep = mask + (mask_per_row ? at : from);
        loss_block<true>(final + at, target + at, start + at, keep, grad + at, n,
                         partials + 2 * unit);
      } else {
        loss_block<false>(final + at, target + at, start + at, mask, grad + at, n,
                          partials + 2 * unit);
      }
    }
#pragma omp single
    for (int64_t row = 0; row < g; ++row) {
      double left = 0, whole = 0;
      for (int64_t unit = row * blocks; unit < (row + 1) * blocks; ++unit) {
        left += partials[2 * unit];
        whole += partials[2 * unit + 1];
      }
      loss[row] = left / whole;
      denominator[row] = whole;
    }
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < g * blocks; ++unit) {
      const int64_t row = unit / blocks, from = (unit % blocks) * kBlock;
      scale_block(grad + row * p + from, T(2 / denominator[row]),
                  p - from < kBlock ? p - from : kBlock);
    }
  }
}

KD_INSTANTIATE(trajectory_loss)

}  // namespace kd::KD_ISA
