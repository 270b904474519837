// value = sum_c |w_c * (mean_c(real) - mean_c(syn))|^2.
// Truth: kdistill/backends/reference/class_mean_sqdist.py
//   real [n, f], syn [m, f], weights [num_classes, f] or null, diff [num_classes, f] (the
//   difference of the means, 0 where a class is absent on either side), grad_syn [m, f] (d value /
//   d syn) or null: row-major, contiguous, not overlapping.  labels in 0..num_classes-1.
//   Scratch: lists [n + m + 2*num_classes + 2], partials [num_classes, ceil(f / kStrip)].
// One unit of work is a class and a strip of features: its sums stay in L1, every row is read once,
// and no sum depends on the number of threads.  Cost: (n + m + 5*num_classes)*f flops; reads (n +
// m)*f and writes num_classes*f (and m*f) elements.
#include "common/check.hpp"
#include "common/class_lists.hpp"
#include "cpu/ops.hpp"

namespace kd::KD_ISA {
namespace {

// features per unit: three strips of float64 fill 24 of the 32 KiB of L1
constexpr int64_t kStrip = 1024;
// elements of work under which waking a second thread costs more than it saves
constexpr int64_t kGrain = 1 << 16;
// rows added in a tree before they meet the running sum: less traffic, less rounding
constexpr int64_t kRows = 8;

template <typename T>
void add_rows(const T* x, const int64_t* rows, int64_t count, int64_t f, int64_t width, T* sum) {
  for (int64_t j = 0; j < width; ++j) sum[j] = 0;
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows) {
    const T *a = x + rows[i] * f, *b = x + rows[i + 1] * f, *c = x + rows[i + 2] * f,
            *d = x + rows[i + 3] * f;
    const T *e = x + rows[i + 4] * f, *g = x + rows[i + 5] * f, *h = x + rows[i + 6] * f,
            *k = x + rows[i + 7] * f;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j)
      sum[j] += ((a[j] + b[j]) + (c[j] + d[j])) + ((e[j] + g[j]) + (h[j] + k[j]));
  }
  for (; i < count; ++i) {
    const T* a = x + rows[i] * f;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) sum[j] += a[j];
  }
}

// The gradient of one row of a class with count rows: factor is 2*grad, negative for synthetic
// rows.
template <typename T>
void row_gradient(const T* diff, const T* w, T factor, int64_t count, int64_t width, T* to) {
  const T rows = T(count);
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) to[j] = factor * (w ? w[j] * w[j] * diff[j] : diff[j]) / rows;
}

template <typename T>
void copy_row(const T* from, int64_t width, T* to) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) to[j] = from[j];
}

}  // namespace

template <typename T>
void class_mean_sqdist(const T* real, const int64_t* real_labels, const T* syn,
                       const int64_t* syn_labels, const T* weights, T* value, T* diff, T* grad_syn,
                       int64_t* lists, T* partials, int64_t n, int64_t m, int64_t f,
                       int64_t num_classes, int threads) {
  KD_CHECK(n >= 0 && m >= 0 && f >= 0 && num_classes >= 0 && threads > 0,
           "class_mean_sqdist: expected sizes >= 0 and threads > 0");
  int64_t *real_order = lists, *syn_order = lists + n;
  int64_t *real_offsets = lists + n + m, *syn_offsets = real_offsets + num_classes + 1;
  class_lists(real_labels, real_order, real_offsets, n, num_classes);
  class_lists(syn_labels, syn_order, syn_offsets, m, num_classes);
  const int64_t strips = (f + kStrip - 1) / kStrip;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if ((n + m) * f > kGrain)
  for (int64_t unit = 0; unit < num_classes * strips; ++unit) {
    const int64_t c = unit / strips, start = (unit % strips) * kStrip;
    const int64_t width = f - start < kStrip ? f - start : kStrip;
    const int64_t num_real = real_offsets[c + 1] - real_offsets[c],
                  num_syn = syn_offsets[c + 1] - syn_offsets[c];
    const T* w = weights ? weights + c * f + start : nullptr;
    T* out = diff + c * f + start;
    T total = 0;
    if (num_real == 0 || num_syn == 0) {
      for (int64_t j = 0; j < width; ++j) out[j] = 0;
    } else {
      T real_sum[kStrip], syn_sum[kStrip];
      add_rows(real + start, real_order + real_offsets[c], num_real, f, width, real_sum);
      add_rows(syn + start, syn_order + syn_offsets[c], num_syn, f, width, syn_sum);
      for (int64_t j = 0; j < width; ++j)
        out[j] = real_sum[j] / T(num_real) - syn_sum[j] / T(num_syn);
#pragma omp simd reduction(+ : total)
      for (int64_t j = 0; j < width; ++j) {
        const T scaled = w ? w[j] * out[j] : out[j];
        total += scaled * scaled;
      }
    }
    partials[unit] = total;
    if (grad_syn && num_syn > 0) {
      T row[kStrip];
      row_gradient(out, w, T(-2), num_syn, width, row);
      for (int64_t i = 0; i < num_syn; ++i)
        copy_row(row, width, grad_syn + syn_order[syn_offsets[c] + i] * f + start);
    }
  }
  double sum = 0;  // in the order of the units
  for (int64_t unit = 0; unit < num_classes * strips; ++unit) sum += double(partials[unit]);
  *value = T(sum);
}

// out[i] = table[labels[i]] with table = sign*2*grad*w^2*diff/count, the gradient of a row of each
// class.  grad is one number, diff and table [num_classes, f], out [n, f].  Scratch: counts
// [num_classes], table.
template <typename T>
void class_mean_sqdist_bwd(const T* grad, const T* diff, const T* weights, const int64_t* labels,
                           T* out, int64_t* counts, T* table, int64_t n, int64_t f,
                           int64_t num_classes, double sign, int threads) {
  KD_CHECK(n >= 0 && f >= 0 && num_classes >= 0 && threads > 0,
           "class_mean_sqdist_bwd: expected sizes >= 0 and threads > 0");
  for (int64_t c = 0; c < num_classes; ++c) counts[c] = 0;
  for (int64_t i = 0; i < n; ++i) {
    KD_CHECK(labels[i] >= 0 && labels[i] < num_classes,
             "class_mean_sqdist_bwd: expected labels in 0..num_classes-1");
    ++counts[labels[i]];
  }
  const T factor = T(2 * sign) * *grad;
#pragma omp parallel num_threads(threads) if (n * f > kGrain)
  {
#pragma omp for schedule(static)
    for (int64_t c = 0; c < num_classes; ++c) {
      if (counts[c] == 0) continue;  // no row reads it
      row_gradient(diff + c * f, weights ? weights + c * f : nullptr, factor, counts[c], f,
                   table + c * f);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) copy_row(table + labels[i] * f, f, out + i * f);
  }
}

KD_INSTANTIATE(class_mean_sqdist)
KD_INSTANTIATE(class_mean_sqdist_bwd)

}  // namespace kd::KD_ISA
