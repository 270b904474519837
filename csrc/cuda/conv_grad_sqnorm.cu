// out_n = sum over pairs (i, j) of output pixels and over the nine taps (dy, dx) of
//     gg[n, i, j] * gx[n, i + tap, j + tap],   taps outside of the image left out:
// the squared norm of image n's weight gradient of a 3x3 convolution, from the inner products of
// its pixels.
// Truth: kdistill/backends/reference/conv_grad_sqnorm.py
//   gx [n, H*W, H*W], gg [n, h*w, h*w] with h = H + 2p - 2 and w = W + 2p - 2: row-major,
//   contiguous; out [n], partials [n, h*w, 2].
// A block per (image, i), neighbouring threads on neighbouring j; the nine rows of gx come from L1
// and L2.  A second launch adds the partials of an image in a fixed order; no atomics.
#include "cuda/ops.hpp"
#include "cuda/two_sums.hpp"

namespace kd::cuda {
namespace {

template <typename T>
__global__ void conv_grad_sqnorm_kernel(const T* gx, const T* gg, double* partials, int H, int W,
                                        int h, int w, int padding) {
  __shared__ double tile[2][kSumWarps];
  const int outs = h * w, pixels = H * W;
  const int64_t unit = blockIdx.x, image = unit / outs;
  const int i = int(unit % outs), iy = i / w - padding, ix = i % w - padding;
  gx += image * pixels * pixels;
  gg += unit * outs;
  double sum = 0;
  for (int j = threadIdx.x; j < outs; j += kSumThreads) {
    const int jy = j / w - padding, jx = j % w - padding;
    T taps = 0;
    for (int tap = 0; tap < 9; ++tap) {
      const int dy = tap / 3, dx = tap % 3;
      const int ay = iy + dy, ax = ix + dx, by = jy + dy, bx = jx + dx;
      const bool inside =
          ay >= 0 && ay < H && by >= 0 && by < H && ax >= 0 && ax < W && bx >= 0 && bx < W;
      if (inside) taps += gx[int64_t{ay * W + ax} * pixels + by * W + bx];
    }
    sum += double(taps) * double(gg[j]);
  }
  sum_over_block(sum, 0.0, tile, partials + 2 * unit);
}

__global__ void conv_grad_sqnorm_sum_kernel(const double* partials, double* out, int64_t outs) {
  __shared__ double tile[2][kSumWarps];
  double sums[2];
  sum_partials(partials + 2 * blockIdx.x * outs, outs, tile, sums);
  if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}

}  // namespace

template <typename T>
void conv_grad_sqnorm(const T* gx, const T* gg, double* out, double* partials, int64_t n, int64_t H,
                      int64_t W, int64_t padding, cudaStream_t stream) {
  if (n == 0) return;  // an empty grid is a launch error
  const int64_t h = H + 2 * padding - 2, w = W + 2 * padding - 2;
  KD_CHECK(H * W <= 1 << 20 && n * h * w <= INT32_MAX,
           "conv_grad_sqnorm: expected feature maps up to 1024x1024 and fewer images; split them");
  KD_LAUNCH(conv_grad_sqnorm_kernel<T>, dim3(n * h * w), dim3(kSumThreads), 0, stream, gx, gg,
            partials, int(H), int(W), int(h), int(w), int(padding));
  KD_LAUNCH(conv_grad_sqnorm_sum_kernel, dim3(n), dim3(kSumThreads), 0, stream, partials, out,
            h * w);
}

KD_INSTANTIATE(conv_grad_sqnorm)

}  // namespace kd::cuda
