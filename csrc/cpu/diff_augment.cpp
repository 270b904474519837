// One differentiable augmentation per image.
// Truth: kdistill/backends/reference/diff_augment.py
//   images, grad, out [n, c, h, w]; params [sets, 8] (a family code, then its parameters); index
//   [n], the row of params that an image uses: row-major, contiguous, not overlapping.
// One image is one unit of work, owned by one thread, so the scatter of the affine transpose needs
// no atomics and no result depends on the number of threads.  Colour, crop, cutout and flip read
// and write each element once; the affine families copy the image into a zero-bordered,
// channel-interleaved buffer, where one vector load fetches a tap of up to four channels.
#include <cstdint>
#include <cstdlib>

#include "common/check.hpp"
#include "cpu/diff_augment_affine.hpp"
#include "cpu/ops.hpp"

namespace kd::KD_ISA {
namespace {

enum Family { kIdentity = 0, kColor = 1, kCrop = 2, kCutout = 3, kFlip = 4, kAffine = 5 };
constexpr int64_t kRow = 8;      // elements of one row of params
constexpr int64_t kChunk = 512;  // elements added before the sum goes on in float64
// elements below which waking another thread costs more than it saves
constexpr int64_t kWorthThreads = 8192;

int64_t clamped(double value, int64_t low, int64_t high) {
  if (!(value > double(low))) return low;  // NaN too
  return value < double(high) ? int64_t(value) : high;
}

template <typename T>
void copy(const T* from, T* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

template <typename T>
double sum(const T* x, int64_t n) {
  double total = 0;
  for (int64_t start = 0; start < n; start += kChunk) {
    const int64_t end = start + kChunk < n ? start + kChunk : n;
    T part[32] = {};  // independent chains: speed and less rounding
    int64_t i = start;
    for (; i + 32 <= end; i += 32) {
#pragma omp simd
      for (int64_t j = 0; j < 32; ++j) part[j] += x[i + j];
    }
    for (; i < end; ++i) part[0] += x[i];
    T chunk = 0;
#pragma omp simd reduction(+ : chunk)
    for (int64_t j = 0; j < 32; ++j) chunk += part[j];
    total += double(chunk);
  }
  return total;
}

// out = own*x + shared*(mean over channels) + (1 - k)*(mean over the image) + b,
// own = s*k, shared = (1 - s)*k.  Without the offset b this linear map is its own transpose.
template <typename T>
void color(const T* x, T* out, const double* p, bool linear, Sizes z) {
  const int64_t plane = z.h * z.w;
  const double k = p[2], s = z.c == 1 ? 1.0 : p[1];
  const T rest = T((1 - k) * (sum(x, z.c * plane) / double(z.c * plane)) + (linear ? 0.0 : p[0]));
  const T own = T(s * k), shared = T((1 - s) * k / double(z.c));
  if (z.c == 3) {
    const T *x0 = x, *x1 = x + plane, *x2 = x + 2 * plane;
    T *y0 = out, *y1 = out + plane, *y2 = out + 2 * plane;
#pragma omp simd
    for (int64_t i = 0; i < plane; ++i) {
      const T a = x0[i], b = x1[i], c = x2[i];
      const T m = shared * (a + b + c) + rest;
      y0[i] = own * a + m;
      y1[i] = own * b + m;
      y2[i] = own * c + m;
    }
    return;
  }
  for (int64_t start = 0; start < plane; start += kChunk) {
    const int64_t width = plane - start < kChunk ? plane - start : kChunk;
    T mean[kChunk] = {};
    for (int64_t c = 0; c < z.c; ++c) {
      const T* from = x + c * plane + start;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) mean[j] += from[j];
    }
    for (int64_t c = 0; c < z.c; ++c) {
      const T* from = x + c * plane + start;
      T* to = out + c * plane + start;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) to[j] = own * from[j] + (shared * mean[j] + rest);
    }
  }
}

// out[i, j] = x[i + dh, j + dw], zero where that lies outside.
template <typename T>
void crop(const T* x, T* out, int64_t dh, int64_t dw, Sizes z) {
  // output rows that have a source
  const int64_t first = dh < 0 ? -dh : 0, last = dh > 0 ? z.h - dh : z.h;
  const int64_t left = dw < 0 ? -dw : 0, right = dw > 0 ? z.w - dw : z.w;
  for (int64_t c = 0; c < z.c; ++c, x += z.h * z.w, out += z.h * z.w) {
    zero(out, first * z.w);
    // the rows are neighbours in memory, so this is one shifted copy; what wrapped around an edge
    // is overwritten
    const int64_t n = (last - first) * z.w - (right < z.w ? dw : left);
    copy(x + (first + dh) * z.w + (dw > 0 ? dw : 0), out + first * z.w + left, n > 0 ? n : 0);
    // column by column: a few zeros in a row would become a call of memset for each row
    for (int64_t j = 0; j < left; ++j)
      for (int64_t i = first; i < last; ++i) out[i * z.w + j] = 0;
    for (int64_t j = right; j < z.w; ++j)
      for (int64_t i = first; i < last; ++i) out[i * z.w + j] = 0;
    zero(out + last * z.w, (z.h - last) * z.w);
  }
}

struct Span {
  int64_t first, last;
};

// The part inside 0..size-1 of `side` pixels that start at centre - side/2.
Span cut(double centre, double side, int64_t size) {
  const int64_t length = clamped(side, 0, 2 * size),
                start = clamped(centre, -4 * size, 4 * size) - length / 2;
  const int64_t first = start > 0 ? (start < size ? start : size) : 0, end = start + length;
  const int64_t last = end < size ? (end > first ? end : first) : size;
  return {first, last};
}

template <typename T>
void cutout(const T* x, T* out, const double* p, Sizes z) {
  const Span rows = cut(p[0], p[2], z.h), cols = cut(p[1], p[3], z.w);
  // as wide as a float32
  const int32_t w = int32_t(z.w), left = int32_t(cols.first), right = int32_t(cols.last);
  for (int64_t c = 0; c < z.c; ++c, x += z.h * z.w, out += z.h * z.w) {
    copy(x, out, rows.first * z.w);
    for (int64_t i = rows.first; i < rows.last; ++i) {
      const T* from = x + i * z.w;
      T* to = out + i * z.w;
#pragma omp simd
      for (int32_t j = 0; j < w; ++j) {
        const T value = from[j];
        to[j] = (j < left) | (j >= right) ? value : T(0);
      }
    }
    copy(x + rows.last * z.w, out + rows.last * z.w, (z.h - rows.last) * z.w);
  }
}

template <typename T>
void flip(const T* x, T* out, Sizes z) {
  for (int64_t i = 0; i < z.c * z.h; ++i) {
    const T* from = x + i * z.w;
    T* to = out + i * z.w;
#pragma omp simd
    for (int64_t j = 0; j < z.w; ++j) to[j] = from[z.w - 1 - j];
  }
}

template <typename T>
void one_image(const T* x, T* out, int64_t family, const double* p, bool align_corners, bool linear,
               bool transpose, void* memory, Sizes z) {
  switch (family) {
    case kColor:
      return color(x, out, p, linear, z);
    case kCrop: {
      const int64_t dh = clamped(p[0], -z.h, z.h), dw = clamped(p[1], -z.w, z.w);
      return transpose ? crop(x, out, -dh, -dw, z) : crop(x, out, dh, dw, z);
    }
    case kCutout:
      return cutout(x, out, p, z);
    case kFlip:
      if (p[0] != 0) return flip(x, out, z);
      break;
    case kAffine: {
      Buffers<T> b(memory, z);
      positions(affine_of(p, align_corners, z), b, z);
      for (int64_t c = 0; c < z.c; c += kLanes) {
        const int64_t channels = z.c - c < kLanes ? z.c - c : kLanes;
        if (transpose)
          affine_transpose(x + c * z.h * z.w, out + c * z.h * z.w, b, z, channels);
        else
          affine(x + c * z.h * z.w, out + c * z.h * z.w, b, z, channels);
      }
      return;
    }
  }
  copy(x, out, z.c * z.h * z.w);
}

// Buffers<T> of one thread, made when its first affine image comes.
struct Memory {
  void* start = nullptr;
  ~Memory() { free(start); }
};

template <typename T>
void all_images(const T* x, const double* params, const int64_t* index, T* out, int64_t n,
                int64_t sets, bool align_corners, bool linear, bool transpose, Sizes z,
                int threads) {
  KD_CHECK(n >= 0 && sets >= 0 && z.c >= 0 && z.h >= 0 && z.w >= 0 && threads > 0,
           "diff_augment: expected sizes >= 0, threads > 0");
  const int64_t size = z.c * z.h * z.w;
  if (n == 0 || size == 0) return;
  KD_CHECK(sets > 0, "diff_augment: expected at least one row of params");
  KD_CHECK(z.h < 32768 && z.w < 32768,
           "diff_augment: expected images of at most 32767 x 32767; the taps are 32-bit");
  if (n * size < kWorthThreads) threads = 1;
  const int64_t step =
      n / (8 * threads) < 1 ? 1 : (n / (8 * threads) < 16 ? n / (8 * threads) : 16);
  int64_t next = 0;
  int failed = 0;
  // each thread takes the next few images: one of an affine family takes several times as long as
  // one that is cropped
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    Memory memory;
    for (;;) {
      int64_t first;
#pragma omp atomic capture
      {
        first = next;
        next += step;
      }
      if (first >= n) break;
      for (int64_t i = first; i < first + step && i < n; ++i) {
        const int64_t set = index[i] < 0 ? 0 : (index[i] < sets ? index[i] : sets - 1);
        const double* row = params + kRow * set;
        // an unknown code leaves the image as it is
        const int64_t family = clamped(row[0], kIdentity, kAffine + 1);
        if (family == kAffine && !memory.start) memory.start = malloc(size_t(Buffers<T>::bytes(z)));
        if (family == kAffine && !memory.start) {
#pragma omp atomic write
          failed = 1;
          continue;  // nothing in here throws: an exception must not leave a parallel region
        }
        one_image(x + i * size, out + i * size, family, row + 1, align_corners, linear, transpose,
                  memory.start, z);
      }
    }
  }
  KD_CHECK(!failed,
           "diff_augment: expected memory for one interleaved image per thread, got none; use "
           "smaller images");
}

}  // namespace

template <typename T>
void diff_augment(const T* images, const double* params, const int64_t* index, T* out, int64_t n,
                  int64_t c, int64_t h, int64_t w, int64_t sets, bool align_corners, bool linear,
                  int threads) {
  all_images(images, params, index, out, n, sets, align_corners, linear, false, Sizes{c, h, w},
             threads);
}

// The transpose of the linear part, so brightness plays no role.
template <typename T>
void diff_augment_bwd(const T* grad, const double* params, const int64_t* index, T* out, int64_t n,
                      int64_t c, int64_t h, int64_t w, int64_t sets, bool align_corners,
                      int threads) {
  all_images(grad, params, index, out, n, sets, align_corners, true, true, Sizes{c, h, w}, threads);
}

KD_INSTANTIATE(diff_augment)
KD_INSTANTIATE(diff_augment_bwd)

}  // namespace kd::KD_ISA
