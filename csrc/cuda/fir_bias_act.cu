// out = clamp(gain * leaky(fir(x) * scale + noise + bias)) and its backward.
//   out, grad [n, h, w, c]; x, dx [n, h + 1, w + 1, c] with taps, else [n, h, w, c]; scale, dscale
//   [n, c]; bias, dbias [c], bias may be null; noise, dnoise [noise_rows, h, w] with noise_rows 1
//   or n, 0 for none; taps [4] or null: row-major, contiguous, not overlapping.
// Forward: a thread per element.  Backward: a block per image, kLanes channels and kPixels pixels
// of x; a warp spans the channels of a pixel, so that every access is coalesced and the sum over
// channels is a shuffle.  The sixteen neighbours of the filter come from L1.  All sums have a fixed
// order.
// Truth: kdistill/backends/reference/fir_bias_act.py, derivation: docs/ops/fir_bias_act.md
#include "common/cuda.hpp"
#include "cuda/ops.hpp"

namespace kd::cuda {
namespace {

constexpr int kLanes = 32;    // channels of a block of the backward
constexpr int kWarps = 8;     // of that block; they share its pixels
constexpr int kPixels = 256;  // of that block

// One image: h and w are the sides of the result, `more` is 1 with taps, else 0: the sides of x are
// that much longer.
struct Maps {
  int64_t c;
  int h, w, more;

  __host__ __device__ int64_t result() const { return int64_t{h} * w; }
  __host__ __device__ int64_t input() const { return int64_t{h + more} * (w + more); }
};

template <typename T>
struct Activation {
  T slope, gain, limit;

  __device__ T operator()(T y) const {
    const T z = (y > T(0) ? y : y * slope) * gain;
    const T capped = z > limit ? limit : z;  // a NaN stays
    return capped < -limit ? -limit : capped;
  }

  // grad times the derivative, which the result tells
  __device__ T pulled_back(T out, T grad) const {
    if (out >= limit || out <= -limit) return T(0);
    return grad * (out > T(0) ? gain : gain * slope);
  }
};

template <typename T>
__global__ void fir_bias_act_fwd_kernel(const T* x, const T* scale, const T* bias, const T* noise,
                                        const T* taps, T* out, int64_t n, Maps m,
                                        int64_t noise_rows, Activation<T> act) {
  T filter[4] = {0, 0, 0, 0};
  for (int a = 0; a < 4 && taps; ++a) filter[a] = taps[3 - a];
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < n * m.result() * m.c;
       at += stride) {
    const int64_t k = at % m.c, pixel = at / m.c % m.result(), image = at / m.c / m.result();
    T value = 0;
    if (taps) {
      const int i = int(pixel / m.w), j = int(pixel % m.w);
      const T* from = x + image * m.input() * m.c + k;
      for (int a = 0; a < 4; ++a) {
        const int row = i + a - 1;
        if (row < 0 || row > m.h) continue;
        T along = 0;
        for (int b = 0; b < 4; ++b) {
          const int column = j + b - 1;
          if (column >= 0 && column <= m.w)
            along += filter[b] * from[(int64_t{row} * (m.w + 1) + column) * m.c];
        }
        value += filter[a] * along;
      }
    } else {
      value = x[at];
    }
    value = value * scale[image * m.c + k];
    if (noise_rows) value += noise[(noise_rows == 1 ? 0 : image) * m.result() + pixel];
    if (bias) value += bias[k];
    out[at] = act(value);
  }
}

// partials [2, n, chunks, c]: the shares of the block's pixels in dscale and dbias; of_tiles [n,
// tiles, h, w], or null: the share of its channels in dnoise.
template <typename T>
__global__ void __launch_bounds__(kLanes* kWarps)
    fir_bias_act_bwd_kernel(const T* grad, const T* out, const T* x, const T* scale, const T* taps,
                            T* dx, T* of_tiles, T* partials, int64_t n, Maps m, Activation<T> act) {
  __shared__ T partial[2][kWarps][kLanes];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t tiles = ceil_div(m.c, kLanes), image = blockIdx.x / tiles,
                tile = blockIdx.x % tiles, k = tile * kLanes + tx;
  const bool inside = k < m.c;
  const int64_t at = image * m.result() * m.c + k, first = image * m.input() * m.c + k;
  const T factor = inside ? scale[image * m.c + k] : T(0);
  T filter[4] = {0, 0, 0, 0};
  for (int a = 0; a < 4 && taps; ++a) filter[a] = taps[3 - a];
  T sum_scale = 0, sum_bias = 0;
  const int width = m.w + m.more;
  const int64_t start = int64_t{blockIdx.y} * kPixels;
  const int64_t stop = start + kPixels < m.input() ? start + kPixels : m.input();
  for (int64_t p = start + ty; p < stop; p += kWarps) {  // the same pixel for a warp
    const int r = int(p / width), q = int(p % width);
    T own = 0;
    if (inside && r < m.h && q < m.w) {
      const int64_t from = at + (int64_t{r} * m.w + q) * m.c;
      own = act.pulled_back(out[from], grad[from]);
    }
    sum_bias += own;
    if (of_tiles && r < m.h && q < m.w) {
      T sum = own;
      for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
      if (tx == 0) of_tiles[(image * tiles + tile) * m.result() + int64_t{r} * m.w + q] = sum;
    }
    if (!inside) continue;
    T raw = own;
    if (taps) {
      raw = 0;
      for (int a = 0; a < 4; ++a) {
        const int i = r + 1 - a;
        if (i < 0 || i >= m.h) continue;
        T along = 0;
        for (int b = 0; b < 4; ++b) {
          const int j = q + 1 - b;
          if (j < 0 || j >= m.w) continue;
          const int64_t from = at + (int64_t{i} * m.w + j) * m.c;
          along += filter[b] * act.pulled_back(out[from], grad[from]);
        }
        raw += filter[a] * along;
      }
    }
    dx[first + p * m.c] = raw * factor;
    sum_scale += raw * x[first + p * m.c];
  }
  partial[0][ty][tx] = sum_scale;
  partial[1][ty][tx] = sum_bias;
  __syncthreads();
  if (ty != 0 || !inside) return;
  sum_scale = sum_bias = 0;
  for (int i = 0; i < kWarps; ++i) sum_scale += partial[0][i][tx], sum_bias += partial[1][i][tx];
  const int64_t row = image * gridDim.y + blockIdx.y;
  partials[row * m.c + k] = sum_scale;
  partials[(n * gridDim.y + row) * m.c + k] = sum_bias;
}

// out[o, j] = sum_i in[o, i, j] for i < rows, in their order.
template <typename T>
__global__ void fir_bias_act_sum_kernel(const T* in, T* out, int64_t outer, int64_t rows,
                                        int64_t columns) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= outer * columns) return;
  const T* from = in + at / columns * rows * columns + at % columns;
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += double(from[i * columns]);
  out[at] = T(sum);
}

template <typename T>
void sum_rows(const T* in, T* out, int64_t outer, int64_t rows, int64_t columns,
              cudaStream_t stream) {
  if (outer * columns == 0) return;  // an empty grid is a launch error
  KD_LAUNCH(fir_bias_act_sum_kernel<T>, dim3(ceil_div(outer * columns, 128)), dim3(128), 0, stream,
            in, out, outer, rows, columns);
}

void check(int64_t n, int64_t c, int64_t h, int64_t w, int64_t noise_rows) {
  KD_CHECK(n >= 0 && c >= 0 && h >= 0 && w >= 0, "fir_bias_act: expected sizes >= 0");
  KD_CHECK(h < 32768 && w < 32768,
           "fir_bias_act: expected sides below 32768; filter the image in parts");
  KD_CHECK(noise_rows == 0 || noise_rows == 1 || noise_rows == n,
           "fir_bias_act: expected noise for one image or for all");
}

}  // namespace

template <typename T>
void fir_bias_act(const T* x, const T* scale, const T* bias, const T* noise, const T* taps, T* out,
                  int64_t n, int64_t c, int64_t h, int64_t w, int64_t noise_rows, double slope,
                  double gain, double limit, cudaStream_t stream) {
  check(n, c, h, w, noise_rows);
  if (n * c * h * w == 0) return;  // an empty grid is a launch error
  const Maps m{c, int(h), int(w), taps ? 1 : 0};
  const int64_t blocks = ceil_div(n * c * h * w, int64_t{256});
  const dim3 grid(blocks < 65536 ? blocks : 65536), block(256);
  const Activation<T> act{T(slope), T(gain), T(limit)};
  KD_LAUNCH(fir_bias_act_fwd_kernel<T>, grid, block, 0, stream, x, scale, bias, noise, taps, out, n,
            m, noise_rows, act);
}

// chunks = ceil(pixels of x / 256), tiles = ceil(c / 32).
template <typename T>
void fir_bias_act_bwd(const T* grad, const T* out, const T* x, const T* scale, const T* taps, T* dx,
                      T* dscale, T* dbias, T* dnoise, T* of_tiles, T* partials, int64_t n,
                      int64_t c, int64_t h, int64_t w, int64_t noise_rows, double slope,
                      double gain, double limit, cudaStream_t stream) {
  check(n, c, h, w, noise_rows);
  const Maps m{c, int(h), int(w), taps ? 1 : 0};
  const int64_t chunks = ceil_div(m.input(), int64_t{kPixels}),
                tiles = ceil_div(c, int64_t{kLanes});
  KD_CHECK(chunks <= 65535,
           "fir_bias_act_bwd: expected at most 16776960 pixels; filter the image in parts");
  if (n * c * m.input() > 0) {
    const dim3 grid(n * tiles, chunks), block(kLanes, kWarps);
    const Activation<T> act{T(slope), T(gain), T(limit)};
    KD_LAUNCH(fir_bias_act_bwd_kernel<T>, grid, block, 0, stream, grad, out, x, scale, taps, dx,
              noise_rows ? of_tiles : nullptr, partials, n, m, act);
  }
  sum_rows(partials, dscale, n, chunks, c, stream);
  sum_rows(partials + n * chunks * c, dbias, 1, n * chunks, c, stream);
  if (noise_rows) sum_rows(of_tiles, dnoise, noise_rows, n / noise_rows * tiles, h * w, stream);
}

KD_INSTANTIATE(fir_bias_act)
KD_INSTANTIATE(fir_bias_act_bwd)

}  // namespace kd::cuda
