// value = sum_c |w_c * (mean_c(real) - mean_c(syn))|^2.  Truth: kdistill/backends/reference/class_mean_sqdist.py
//   real [n, f], syn [m, f], weights [num_classes, f] or null, diff [num_classes, f] (the difference of the means, 0 where a
//   class is absent on either side), partials [num_classes, ceil(f / kStrip)]: row-major, contiguous, not overlapping.
//   *_order and *_offsets list the rows of each class (common/class_lists.hpp).
// One unit of work is a class and a strip of features: its sums stay in L1, every row is read once, and no sum depends on the
// number of threads.  Cost: (n + m + 5*num_classes)*f flops; reads (n + m)*f and writes num_classes*f elements.
#include "common/check.hpp"
#include "cpu/ops.hpp"

namespace kd::KD_ISA {
namespace {

constexpr int64_t kStrip = 1024;  // features per unit: three strips of float64 fill 24 of the 32 KiB of L1
constexpr int64_t kRows = 8;      // rows added in a tree before they meet the running sum: less traffic, less rounding

template <typename T>
void add_rows(const T* x, const int64_t* rows, int64_t count, int64_t f, int64_t width, T* sum) {
  for (int64_t j = 0; j < width; ++j) sum[j] = 0;
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows) {
    const T *a = x + rows[i] * f, *b = x + rows[i + 1] * f, *c = x + rows[i + 2] * f, *d = x + rows[i + 3] * f;
    const T *e = x + rows[i + 4] * f, *g = x + rows[i + 5] * f, *h = x + rows[i + 6] * f, *k = x + rows[i + 7] * f;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) sum[j] += ((a[j] + b[j]) + (c[j] + d[j])) + ((e[j] + g[j]) + (h[j] + k[j]));
  }
  for (; i < count; ++i) {
    const T* a = x + rows[i] * f;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) sum[j] += a[j];
  }
}

}  // namespace

template <typename T>
void class_mean_sqdist(const T* real, const int64_t* real_order, const int64_t* real_offsets, const T* syn,
                       const int64_t* syn_order, const int64_t* syn_offsets, const T* weights, T* value, T* diff,
                       T* partials, int64_t f, int64_t num_classes, int threads) {
  KD_CHECK(f >= 0 && num_classes >= 0 && threads > 0, "class_mean_sqdist: expected sizes >= 0 and threads > 0");
  const int64_t strips = (f + kStrip - 1) / kStrip;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t unit = 0; unit < num_classes * strips; ++unit) {
    const int64_t c = unit / strips, start = (unit % strips) * kStrip;
    const int64_t width = f - start < kStrip ? f - start : kStrip;
    const int64_t num_real = real_offsets[c + 1] - real_offsets[c], num_syn = syn_offsets[c + 1] - syn_offsets[c];
    T* out = diff + c * f + start;
    T total = 0;
    if (num_real == 0 || num_syn == 0) {
      for (int64_t j = 0; j < width; ++j) out[j] = 0;
    } else {
      T real_sum[kStrip], syn_sum[kStrip];
      add_rows(real + start, real_order + real_offsets[c], num_real, f, width, real_sum);
      add_rows(syn + start, syn_order + syn_offsets[c], num_syn, f, width, syn_sum);
      for (int64_t j = 0; j < width; ++j) out[j] = real_sum[j] / T(num_real) - syn_sum[j] / T(num_syn);
      const T* w = weights ? weights + c * f + start : nullptr;
#pragma omp simd reduction(+ : total)
      for (int64_t j = 0; j < width; ++j) {
        const T scaled = w ? w[j] * out[j] : out[j];
        total += scaled * scaled;
      }
    }
    partials[unit] = total;
  }
  double sum = 0;  // in the order of the units
  for (int64_t unit = 0; unit < num_classes * strips; ++unit) sum += double(partials[unit]);
  *value = T(sum);
}

// out[i] = table[labels[i]].  table [num_classes, f] is 2*grad*w^2*diff/count, out [n, f].
template <typename T>
void class_mean_sqdist_bwd(const T* table, const int64_t* labels, T* out, int64_t n, int64_t f, int threads) {
  KD_CHECK(n >= 0 && f >= 0 && threads > 0, "class_mean_sqdist_bwd: expected sizes >= 0 and threads > 0");
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    const T* row = table + labels[i] * f;
    T* to = out + i * f;
#pragma omp simd
    for (int64_t j = 0; j < f; ++j) to[j] = row[j];
  }
}

template void class_mean_sqdist(const float*, const int64_t*, const int64_t*, const float*, const int64_t*, const int64_t*,
                                const float*, float*, float*, float*, int64_t, int64_t, int);
template void class_mean_sqdist(const double*, const int64_t*, const int64_t*, const double*, const int64_t*, const int64_t*,
                                const double*, double*, double*, double*, int64_t, int64_t, int);
template void class_mean_sqdist_bwd(const float*, const int64_t*, float*, int64_t, int64_t, int);
template void class_mean_sqdist_bwd(const double*, const int64_t*, double*, int64_t, int64_t, int);

}  // namespace kd::KD_ISA
