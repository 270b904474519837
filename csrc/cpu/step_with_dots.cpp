// out = y - step*x and dots = (<x, y>, <x, x>) of each row.
// Truth: kdistill/backends/reference/step_with_dots.py
//   y, x, out [g, p], step [1] or [g] (step_per_row), dots [g, 2], partials [g, ceil(p / kBlock),
//   2]: row-major, contiguous.  out may be y or x; nothing else overlaps.
// One pass: reads x and y once, writes out once; 6 flops per element.  A unit of work is a block of
// a row, whose sums stay in float64 registers; the blocks are added in order, so that no bit
// depends on the number of threads.
#include "common/check.hpp"
#include "cpu/ops.hpp"
#include "cpu/vectors.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kBlock = 4096;  // elements per unit: 32 KiB of float32 in, a cost of some 2 us
// elements under which waking a second thread costs more than it saves
constexpr int64_t kGrain = 1 << 16;
// independent sums: a fused multiply-add takes four cycles and two start in each
constexpr int64_t kChains = 4;

template <typename T>
void step_block(const T* y, const T* x, T step, T* out, int64_t n, double* dots) {
  Wide xy[kChains] = {}, xx[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    for (int64_t chain = 0; chain < kChains; ++chain) {
      const int64_t at = i + chain * kLanes;
      const auto xs = load(x + at), ys = load(y + at);
      store(out + at, ys - step * xs);
      const Wide wide = widened(xs);
      xy[chain] += wide * widened(ys);
      xx[chain] += wide * wide;
    }
  }
  double tail_xy = 0, tail_xx = 0;
  for (; i < n; ++i) {
    const T xi = x[i], yi = y[i];
    out[i] = yi - step * xi;
    tail_xy += double(xi) * double(yi);
    tail_xx += double(xi) * double(xi);
  }
  dots[0] = sum_of((xy[0] + xy[1]) + (xy[2] + xy[3])) + tail_xy;
  dots[1] = sum_of((xx[0] + xx[1]) + (xx[2] + xx[3])) + tail_xx;
}

}  // namespace

template <typename T>
void step_with_dots(const T* y, const T* x, const T* step, T* out, double* dots, double* partials,
                    int64_t g, int64_t p, bool step_per_row, int threads) {
  KD_CHECK(g >= 0 && p >= 0 && threads > 0, "step_with_dots: expected sizes >= 0 and threads > 0");
  const int64_t blocks = (p + kBlock - 1) / kBlock;
#pragma omp parallel for num_threads(threads) schedule(static) if (g * p > kGrain)
  for (int64_t unit = 0; unit < g * blocks; ++unit) {
    const int64_t row = unit / blocks, start = (unit % blocks) * kBlock, at = row * p + start;
    step_block(y + at, x + at, step[step_per_row ? row : 0], out + at,
               p - start < kBlock ? p - start : kBlock, partials + 2 * unit);
  }
  for (int64_t row = 0; row < g; ++row) {
    double xy = 0, xx = 0;
    for (int64_t unit = row * blocks; unit < (row + 1) * blocks; ++unit) {
      xy += partials[2 * unit];
      xx += partials[2 * unit + 1];
    }
    dots[2 * row] = xy;
    dots[2 * row + 1] = xx;
  }
}

KD_INSTANTIATE(step_with_dots)

}  // namespace kd::KD_ISA
