// One differentiable augmentation per image.
// Truth: kdistill/backends/reference/diff_augment.py
//   images, grad, out [n, c, h, w]; params [sets, 8] (a family code, then its parameters); index
//   [n], the row of params that an image uses; partials [n, ceil(h*w / kTile)]: row-major,
//   contiguous, not overlapping.
// One block per image and kTile pixels, one thread per pixel and all its channels.  No atomics: the
// transpose of the affine families gathers from the outputs that a pixel may have reached, so every
// sum has a fixed order.
#include "common/cuda.hpp"
#include "cuda/ops.hpp"

namespace kd::cuda {
namespace {

enum Family { kIdentity = 0, kColor = 1, kCrop = 2, kCutout = 3, kFlip = 4, kAffine = 5 };
constexpr int kRow = 8;  // elements of one row of params
constexpr int kThreads = 256;
constexpr int kTile = 1024;   // pixels of one block: a 32 x 32 image, or part of a larger one
constexpr int kChannels = 4;  // sums that a thread of the affine transpose keeps

struct Sizes {
  int64_t c;
  int h, w, tiles;
};

__device__ inline int clamped(double value, int low, int high) {
  if (!(value > low)) return low;  // NaN too
  return value < high ? int(value) : high;
}

// The sum over the block, the same in every thread and in every run.  Once per kernel: its shared
// memory is not reused.
__device__ inline double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < kThreads / 32; ++i) total += warps[i];
  return total;
}

// What this thread adds to the sum of an image: its pixels of one tile, all channels.
template <typename T>
__device__ double thread_sum(const T* x, int tile, Sizes z) {
  double sum = 0;
  const int plane = z.h * z.w, end = plane - tile * kTile < kTile ? plane : (tile + 1) * kTile;
  for (int64_t c = 0; c < z.c; ++c)
    for (int p = tile * kTile + int(threadIdx.x); p < end; p += kThreads)
      sum += double(x[c * plane + p]);
  return sum;
}

// out = own*x + shared*(mean over channels) + (1 - k)*(mean over the image) + b,
// own = s*k, shared = (1 - s)*k.  Without the offset b this linear map is its own transpose.
template <typename T>
__device__ void color(const T* x, T* out, const double* p, const double* partials, bool linear,
                      int tile, Sizes z) {
  const int plane = z.h * z.w, end = plane - tile * kTile < kTile ? plane : (tile + 1) * kTile;
  double sum = 0;
  if (z.tiles == 1) {
    sum = thread_sum(x, 0, z);
  } else {
    for (int i = threadIdx.x; i < z.tiles; i += kThreads) sum += partials[i];
  }
  const double mean = block_sum(sum) / (double(z.c) * plane);
  const double k = p[2], s = z.c == 1 ? 1.0 : p[1];
  const T rest = T((1 - k) * mean + (linear ? 0.0 : p[0])), own = T(s * k),
          shared = T((1 - s) * k / double(z.c));
  for (int at = tile * kTile + int(threadIdx.x); at < end; at += kThreads) {
    T over_channels = 0;
    for (int64_t c = 0; c < z.c; ++c) over_channels += x[c * plane + at];
    const T add = shared * over_channels + rest;
    for (int64_t c = 0; c < z.c; ++c) out[c * plane + at] = own * x[c * plane + at] + add;
  }
}

// In pixels, source = m * (target - centre) + centre; align_corners only changes the ratio of the
// two axes' units.
struct Affine {
  double xx, xy, yx, yy, centre_x, centre_y;
};

__device__ inline Affine affine_of(const double* p, bool align_corners, Sizes z) {
  const double h = align_corners ? z.h - 1 : z.h, w = align_corners ? z.w - 1 : z.w;
  return {
      p[0],           h > 0 ? p[1] * w / h : 0.0, w > 0 ? p[2] * h / w : 0.0, p[3], (z.w - 1) / 2.0,
      (z.h - 1) / 2.0};
}

// The first tap of an output pixel and how far its source lies beyond.  Outside, it is clamped to
// where no tap lies inside.  Positions are float64 in both dtypes: an error of a position is an
// error of the image times its slope.
struct Tap {
  int x, y;
  double fx, fy;
};

__device__ inline Tap tap_of(const Affine& m, int i, int j, Sizes z) {
  double x = m.xx * (j - m.centre_x) + m.xy * (i - m.centre_y) + m.centre_x;
  double y = m.yx * (j - m.centre_x) + m.yy * (i - m.centre_y) + m.centre_y;
  x = x > -1 ? (x < z.w ? x : z.w) : -1;  // NaN too
  y = y > -1 ? (y < z.h ? y : z.h) : -1;
  const double x0 = floor(x), y0 = floor(y);
  return {int(x0), int(y0), x - x0, y - y0};
}

template <typename T>
__device__ void affine_pixel(const T* x, T* out, const Affine& m, int i, int j, Sizes z) {
  const int plane = z.h * z.w;
  const Tap t = tap_of(m, i, j, z);
  const bool left = t.x >= 0 && t.x < z.w, right = t.x + 1 >= 0 && t.x + 1 < z.w;
  const bool up = t.y >= 0 && t.y < z.h, low = t.y + 1 >= 0 && t.y + 1 < z.h;
  const T fx = T(t.fx), fy = T(t.fy);
  const int at = t.y * z.w + t.x;
  for (int64_t c = 0; c < z.c; ++c) {
    const T* from = x + c * plane;
    T sum = 0;
    if (up && left) sum += (1 - fy) * (1 - fx) * from[at];
    if (up && right) sum += (1 - fy) * fx * from[at + 1];
    if (low && left) sum += fy * (1 - fx) * from[at + z.w];
    if (low && right) sum += fy * fx * from[at + z.w + 1];
    out[c * plane + i * z.w + j] = sum;
  }
}

// Input pixel (i, j) collects from the outputs whose source lies within one pixel of it: the image
// of a 2 x 2 square under the inverse of m, hence a box of about 3 x 3 for the angles and scales of
// the field, and the whole image where m is singular.
template <typename T>
__device__ void affine_transpose_pixel(const T* g, T* out, const Affine& m, int i, int j, Sizes z) {
  const int plane = z.h * z.w;
  const double det = m.xx * m.yy - m.xy * m.yx, dx = j - m.centre_x, dy = i - m.centre_y;
  const bool invertible = fabs(det) > 1e-9;
  const double x = invertible ? (m.yy * dx - m.xy * dy) / det + m.centre_x : 0.0;
  const double y = invertible ? (m.xx * dy - m.yx * dx) / det + m.centre_y : 0.0;
  const double reach_x = invertible ? (fabs(m.yy) + fabs(m.xy)) / fabs(det) + 1e-6 : z.w;
  const double reach_y = invertible ? (fabs(m.xx) + fabs(m.yx)) / fabs(det) + 1e-6 : z.h;
  const int first_x = clamped(ceil(x - reach_x), 0, z.w),
            end_x = clamped(floor(x + reach_x) + 1, 0, z.w);
  const int first_y = clamped(ceil(y - reach_y), 0, z.h),
            end_y = clamped(floor(y + reach_y) + 1, 0, z.h);
  for (int64_t c0 = 0; c0 < z.c; c0 += kChannels) {
    T sum[kChannels] = {};
    for (int oy = first_y; oy < end_y; ++oy) {
      for (int ox = first_x; ox < end_x; ++ox) {
        const Tap t = tap_of(m, oy, ox, z);
        const T fx = T(t.fx), fy = T(t.fy);
        const T weight_x = t.x == j ? 1 - fx : (t.x + 1 == j ? fx : T(0));
        const T weight_y = t.y == i ? 1 - fy : (t.y + 1 == i ? fy : T(0));
        const T weight = weight_x * weight_y;
        if (weight == 0) continue;
        for (int c = 0; c < kChannels; ++c)
          if (c0 + c < z.c) sum[c] += weight * g[(c0 + c) * plane + oy * z.w + ox];
      }
    }
    for (int c = 0; c < kChannels; ++c)
      if (c0 + c < z.c) out[(c0 + c) * plane + i * z.w + j] = sum[c];
  }
}

struct Span {
  int first, last;
};

// The part inside 0..size-1 of `side` pixels that start at centre - side/2.
__device__ inline Span cut(double centre, double side, int size) {
  const int length = clamped(side, 0, 2 * size),
            start = clamped(centre, -4 * size, 4 * size) - length / 2;
  const int first = start > 0 ? start : 0, end = start + length;
  return {first, end < size ? end : size};
}

// Every family but color: a pixel is copied from somewhere, or sampled.
template <typename T, bool transpose>
__device__ void pixels(const T* x, T* out, int family, const double* p, bool align_corners,
                       int tile, Sizes z) {
  const int plane = z.h * z.w, end = plane - tile * kTile < kTile ? plane : (tile + 1) * kTile;
  const Affine m = affine_of(p, align_corners, z);
  const int sign = transpose ? -1 : 1;
  const int dh = family == kCrop ? sign * clamped(p[0], -z.h, z.h) : 0,
            dw = family == kCrop ? sign * clamped(p[1], -z.w, z.w) : 0;
  const bool mirrored = family == kFlip && p[0] != 0;
  Span rows = {0, 0}, cols = {0, 0};
  if (family == kCutout) {
    rows = cut(p[0], p[2], z.h);
    cols = cut(p[1], p[3], z.w);
  }
  for (int at = tile * kTile + int(threadIdx.x); at < end; at += kThreads) {
    const int i = at / z.w, j = at % z.w;
    if (family == kAffine) {
      if (transpose)
        affine_transpose_pixel(x, out, m, i, j, z);
      else
        affine_pixel(x, out, m, i, j, z);
      continue;
    }
    const int from_i = i + dh, from_j = mirrored ? z.w - 1 - j : j + dw;
    const bool inside = from_i >= 0 && from_i < z.h && from_j >= 0 && from_j < z.w;
    const bool erased = i >= rows.first && i < rows.last && j >= cols.first && j < cols.last;
    const int from = from_i * z.w + from_j;
    for (int64_t c = 0; c < z.c; ++c)
      out[c * plane + at] = inside && !erased ? x[c * plane + from] : T(0);
  }
}

// The sum of one tile of an image that needs its mean, where the image has several tiles.
template <typename T>
__global__ void diff_augment_sum_kernel(const T* images, const double* params, const int64_t* index,
                                        double* partials, int64_t sets, Sizes z) {
  const int64_t image = blockIdx.x / unsigned(z.tiles);
  const int64_t set = index[image] < 0 ? 0 : (index[image] < sets ? index[image] : sets - 1);
  if (clamped(params[set * kRow], kIdentity, kAffine + 1) != kColor) return;  // the whole block
  const double sum =
      block_sum(thread_sum(images + image * z.c * z.h * z.w, blockIdx.x % unsigned(z.tiles), z));
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

template <typename T, bool transpose>
__global__ void diff_augment_kernel(const T* images, const double* params, const int64_t* index,
                                    T* out, const double* partials, int64_t sets,
                                    bool align_corners, bool linear, Sizes z) {
  const int64_t image = blockIdx.x / unsigned(z.tiles), offset = image * z.c * z.h * z.w;
  const int tile = blockIdx.x % unsigned(z.tiles);
  const int64_t set = index[image] < 0 ? 0 : (index[image] < sets ? index[image] : sets - 1);
  const double* p = params + set * kRow + 1;
  // an unknown code leaves the image as it is
  const int family = clamped(p[-1], kIdentity, kAffine + 1);
  if (family == kColor)  // the same for the whole block: all or none reach the barrier inside
    color(images + offset, out + offset, p, partials + image * z.tiles, linear, tile, z);
  else
    pixels<T, transpose>(images + offset, out + offset, family, p, align_corners, tile, z);
}

template <typename T, bool transpose>
void launch(const T* images, const double* params, const int64_t* index, T* out, double* partials,
            int64_t n, int64_t c, int64_t h, int64_t w, int64_t sets, bool align_corners,
            bool linear, cudaStream_t stream) {
  if (n == 0 || c * h * w == 0) return;  // an empty grid is a launch error
  KD_CHECK(sets > 0, "diff_augment: expected at least one row of params");
  KD_CHECK(h < 32768 && w < 32768,
           "diff_augment: expected images of at most 32767 x 32767; pixels are counted in 32 bits");
  const Sizes z{c, int(h), int(w), int(ceil_div(h * w, int64_t{kTile}))};
  KD_CHECK(n * z.tiles <= 2147483647,
           "diff_augment: expected at most 2^31 blocks of 1024 pixels; split the batch");
  const dim3 grid(unsigned(n * z.tiles)), block(kThreads);
  if (z.tiles > 1)
    KD_LAUNCH(diff_augment_sum_kernel<T>, grid, block, 0, stream, images, params, index, partials,
              sets, z);
  KD_LAUNCH((diff_augment_kernel<T, transpose>), grid, block, 0, stream, images, params, index, out,
            partials, sets, align_corners, linear, z);
}

}  // namespace

template <typename T>
void diff_augment(const T* images, const double* params, const int64_t* index, T* out,
                  double* partials, int64_t n, int64_t c, int64_t h, int64_t w, int64_t sets,
                  bool align_corners, bool linear, cudaStream_t stream) {
  launch<T, false>(images, params, index, out, partials, n, c, h, w, sets, align_corners, linear,
                   stream);
}

// The transpose of the linear part, so brightness plays no role.
template <typename T>
void diff_augment_bwd(const T* grad, const double* params, const int64_t* index, T* out,
                      double* partials, int64_t n, int64_t c, int64_t h, int64_t w, int64_t sets,
                      bool align_corners, cudaStream_t stream) {
  launch<T, true>(grad, params, index, out, partials, n, c, h, w, sets, align_corners, true,
                  stream);
}

KD_INSTANTIATE(diff_augment)
KD_INSTANTIATE(diff_augment_bwd)

}  // namespace kd::cuda
