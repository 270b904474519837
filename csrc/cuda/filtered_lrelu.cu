// out = downsample(clamp(gain * leaky(upsample(x + bias)))) and its backward.
//   x, dx [n, h, w, c]; bias, dbias [c], bias may be null; up_taps [t], down_taps [s], null for
//   none; out, grad [n, oh, ow, c]; mask [n, R, ceil(S / 4), c], R x S the upsampled feature map,
//   or null: two bits of every upsampled value, four neighbours in a byte.  row-major, contiguous,
//   not overlapping.
// Both passes are one: upsample along both axes, a point function, downsample along both axes;
// backward exchanges the filters, turned.  A block has an image, kLanes channels and kTile x kTile
// results; a warp spans the channels of a pixel, so that every access is coalesced and no two lanes
// of a warp meet in a bank.  It goes down the upsampled rows, each of which passes through shared
// memory only: samples upsampled along the columns, the upsampled row, and a ring of rows
// downsampled along the row, as many as the second filter is long.  All sums have a fixed order.
// Truth: kdistill/backends/reference/filtered_lrelu.py, derivation: docs/ops/filtered_lrelu.md
#include "common/cuda.hpp"
#include "cuda/ops.hpp"

namespace kd::cuda {
namespace {

constexpr int kLanes = 32;  // channels of a block
constexpr int kWarps = 4;   // of a block; they share its pixels
// results of a block along both axes; times any factor a multiple of 4, whole bytes of the mask
constexpr int kTile = 16;

__host__ __device__ inline int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ inline int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ inline int floor_div(int a, int b) { return a / b - (a % b < 0); }

// One axis.  Upsampled sample u is the sum over j of first(j * up + origin - u) * in[j], sample o
// of the result the sum over s of second(s) * upsampled[o * down + start + s]; what lies outside is
// 0.
struct Axis {
  int in, upsampled, out, origin, start;
};

template <typename T>
struct Filters {
  const T *first, *second;  // null: [1]
  int first_taps, second_taps, up, down;
  bool turned;  // the first one is turned around, else the second
  T scale;      // of the result of the first one, or of the second

  __device__ T of_first(int t) const {
    return first ? first[turned ? first_taps - 1 - t : t] : T(1);
  }
  __device__ T of_second(int s) const {
    return second ? second[turned ? second_taps - 1 - s : s] : T(1);
  }
  // the first sample behind upsampled sample u, and the first factor of that sum
  __host__ __device__ int from(const Axis& a, int u) const {
    return floor_div(u - a.origin + up - 1, up);
  }
  __device__ int phase(const Axis& a, int u) const { return from(a, u) * up + a.origin - u; }
  // at most so many upsampled samples behind a tile of results, and samples behind those
  __host__ __device__ int upsampled() const { return kTile * down + second_taps; }
  __host__ __device__ int samples() const { return (upsampled() + first_taps) / up + 2; }
};

// The part of an axis that belongs to one tile.
struct Part {
  int o0, o1;  // of the result
  int u0, u1;  // upsampled samples behind them
  int own;     // the tile writes the mask before this upsampled sample

  template <typename T>
  __device__ Part(const Axis& a, const Filters<T>& f, int tile, bool keeps) {
    o0 = tile * kTile, o1 = smaller(o0 + kTile, a.out);
    u0 = o0 * f.down + a.start, u1 = (o1 - 1) * f.down + a.start + f.second_taps;
    own = o1 == a.out ? a.upsampled : o1 * f.down;
    if (keeps) u1 = larger(u1, own);
  }
};

// Forward: the nonlinearity, and its codes into the mask.
template <typename T>
struct Activation {
  uint8_t* mask;  // or null
  T slope, gain, limit;

  __device__ bool keeps() const { return mask != nullptr; }

  __device__ T operator()(T y, int64_t, int, int& code) const {
    const T z = (y > T(0) ? y : y * slope) * gain;
    code = (y > T(0) ? 1 : 0) | (z >= limit || z <= -limit ? 2 : 0);
    const T capped = z > limit ? limit : z;  // a NaN stays
    return capped < -limit ? -limit : capped;
  }
  __device__ void put(int64_t at, int codes) const { mask[at] = uint8_t(codes); }
};

// Backward: times the derivative, which the mask tells.
template <typename T>
struct Derivative {
  const uint8_t* mask;
  T slope, gain;

  __device__ bool keeps() const { return false; }

  __device__ T operator()(T g, int64_t at, int column, int& code) const {
    code = mask[at] >> (2 * (column % 4)) & 3;
    return g * (code & 2 ? T(0) : code & 1 ? gain : gain * slope);
  }
  __device__ void put(int64_t, int) const {}
};

// The upsampled row u: `row` from the samples of the channel, then `upsampled` from that.  in: the
// channel of the image.
template <typename T, typename Point>
__device__ void upsample_row(const T* in, T shift, int64_t c, bool inside, int u, const Axis& rows,
                             const Axis& columns, const Part& down, const Part& along,
                             const Filters<T>& f, const Point& point, int64_t mask_row, T* row,
                             T* upsampled) {
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int j0 = f.from(columns, along.u0), phase = f.phase(rows, u);
  for (int j = ty; j < f.samples(); j += kWarps) {
    T sum = 0;
    for (int t = phase, i = f.from(rows, u); t < f.first_taps; t += f.up, ++i) {
      const bool real = inside && i >= 0 && i < rows.in && j0 + j >= 0 && j0 + j < columns.in;
      if (real) sum += f.of_first(t) * (in[(int64_t{i} * columns.in + j0 + j) * c] + shift);
    }
    row[j * kLanes + tx] = sum;
  }
  __syncthreads();
  for (int quad = ty; 4 * quad < along.u1 - along.u0; quad += kWarps) {
    int codes = 0;
    for (int i = 0; i < 4; ++i) {
      const int v = along.u0 + 4 * quad + i;
      if (v >= along.u1) break;
      T sum = 0;
      if (v >= 0 && v < columns.upsampled && inside) {
        for (int t = f.phase(columns, v), j = f.from(columns, v) - j0; t < f.first_taps;
             t += f.up, ++j)
          sum += f.of_first(t) * row[j * kLanes + tx];
        int code = 0;
        sum = point(f.turned ? sum * f.scale : sum, mask_row + int64_t{v / 4} * c, v, code);
        codes |= code << (2 * i);
      }
      upsampled[(4 * quad + i) * kLanes + tx] = sum;
    }
    const int v = along.u0 + 4 * quad;
    if (point.keeps() && inside && u < down.own && v < along.own)
      point.put(mask_row + int64_t{v / 4} * c, codes);
  }
  __syncthreads();
}

// The tile of the block: out and, if not null, sums [c]: those of its results.
template <typename T, typename Point>
__device__ void filter_tile(const T* in, const T* bias, T* out, T* partials, int64_t c,
                            const Axis& rows, const Axis& columns, const Filters<T>& f,
                            const Point& point, T* memory) {
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int64_t blocks = ceil_div(c, int64_t{kLanes}), image = blockIdx.x / blocks,
                k = blockIdx.x % blocks * kLanes + tx;
  const int tiles = ceil_div(columns.out, kTile), taps = f.second_taps;
  const bool inside = k < c;
  const Part down(rows, f, blockIdx.y / tiles, point.keeps()),
      along(columns, f, blockIdx.y % tiles, point.keeps());
  T* const row = memory;
  T* const upsampled = row + f.samples() * kLanes;
  T* const ring = upsampled + f.upsampled() * kLanes;
  const T shift = bias && inside ? bias[k] : T(0);
  in += image * rows.in * columns.in * c + k;
  out += image * rows.out * columns.out * c + k;
  T total = 0;
  for (int u = down.u0; u < down.u1; ++u) {
    const int r = u - down.u0, done = r + 1 - taps;
    const bool real = u >= 0 && u < rows.upsampled;  // the same for the whole block
    const int64_t mask_row = (image * rows.upsampled + u) * ceil_div(columns.upsampled, 4) * c + k;
    if (real)
      upsample_row(in, shift, c, inside, u, rows, columns, down, along, f, point, mask_row, row,
                   upsampled);
    for (int o = ty; o < along.o1 - along.o0; o += kWarps) {
      T sum = 0;
      for (int s = 0; s < taps && real; ++s)
        sum += f.of_second(s) * upsampled[(o * f.down + s) * kLanes + tx];
      ring[(r % taps * kTile + o) * kLanes + tx] = sum;
    }
    __syncthreads();
    if (done < 0 || done % f.down != 0 || done / f.down >= down.o1 - down.o0) continue;
    for (int o = ty; o < along.o1 - along.o0; o += kWarps) {
      T sum = 0;
      for (int s = 0, slot = done % taps; s < taps; ++s, slot = slot + 1 == taps ? 0 : slot + 1)
        sum += f.of_second(s) * ring[(slot * kTile + o) * kLanes + tx];
      if (!f.turned) sum *= f.scale;
      if (inside) out[(int64_t{down.o0 + done / f.down} * columns.out + along.o0 + o) * c] = sum;
      total += sum;
    }
    __syncthreads();  // the next row may go into the slot that was read
  }
  if (!partials) return;
  row[ty * kLanes + tx] = total;
  __syncthreads();
  if (ty != 0 || !inside) return;
  for (int i = 1; i < kWarps; ++i) total += row[i * kLanes + tx];
  partials[(image * gridDim.y + blockIdx.y) * c + k] = total;
}

template <typename T>
__global__ void __launch_bounds__(kLanes* kWarps)
    filtered_lrelu_fwd_kernel(const T* x, const T* bias, T* out, int64_t c, Axis rows, Axis columns,
                              Filters<T> f, Activation<T> act) {
  KD_DYNAMIC_SHARED(T, memory);
  filter_tile(x, bias, out, static_cast<T*>(nullptr), c, rows, columns, f, act, memory);
}

// partials [n, tiles, c]: the shares in dbias.
template <typename T>
__global__ void __launch_bounds__(kLanes* kWarps)
    filtered_lrelu_bwd_kernel(const T* grad, T* dx, T* partials, int64_t c, Axis rows, Axis columns,
                              Filters<T> f, Derivative<T> act) {
  KD_DYNAMIC_SHARED(T, memory);
  filter_tile(grad, static_cast<const T*>(nullptr), dx, partials, c, rows, columns, f, act, memory);
}

// dbias[k] = sum_i partials[i, k] for i < rows, in their order.
template <typename T>
__global__ void filtered_lrelu_sum_kernel(const T* partials, T* dbias, int64_t rows, int64_t c) {
  const int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k >= c) return;
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += double(partials[i * c + k]);
  dbias[k] = T(sum);
}

// The dynamic shared memory of a launch; where it is more than any kernel may have, this one is
// allowed it.
template <typename T, typename Kernel>
std::size_t shared_bytes(const Filters<T>& f, Kernel kernel) {
  const int pixels = larger(f.samples(), kWarps) + f.upsampled() + f.second_taps * kTile;
  const std::size_t bytes = sizeof(T) * kLanes * std::size_t(pixels);
  KD_CHECK(
      bytes <= 160 * 1024,
      "filtered_lrelu: expected filters whose rows fit into shared memory; use shorter filters");
  if (bytes > 48 * 1024) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
        "cudaFuncSetAttribute");
  }
  return bytes;
}

dim3 grid_of(int64_t n, int64_t c, const Axis& rows, const Axis& columns) {
  const int64_t tiles = int64_t{ceil_div(rows.out, kTile)} * ceil_div(columns.out, kTile);
  KD_CHECK(tiles <= 65535,
           "filtered_lrelu: expected at most 4095 x 4095 pixels; filter the image in parts");
  return dim3(n * ceil_div(c, int64_t{kLanes}), tiles);
}

void check(int64_t n, int64_t c, int64_t h, int64_t w, int64_t R, int64_t S, int64_t oh, int64_t ow,
           int64_t t, int64_t s, int64_t up, int64_t down) {
  KD_CHECK(n >= 0 && c >= 0 && h > 0 && w > 0 && oh > 0 && ow > 0,
           "filtered_lrelu: expected feature maps with pixels");
  KD_CHECK(R < (1 << 20) && S < (1 << 20),
           "filtered_lrelu: expected upsampled sides below 2^20; filter the image in parts");
  KD_CHECK(t > 0 && s > 0 && up > 0 && down > 0 && t < 4096 && s < 4096 && up < 4096 && down < 4096,
           "filtered_lrelu: expected taps and factors from 1 to 4095");
}

}  // namespace

// R x S the upsampled feature map; left and above: of the padding; t and s: of taps, 1 where null.
template <typename T>
void filtered_lrelu(const T* x, const T* bias, const T* up_taps, const T* down_taps, T* out,
                    uint8_t* mask, int64_t n, int64_t c, int64_t h, int64_t w, int64_t R, int64_t S,
                    int64_t oh, int64_t ow, int64_t t, int64_t s, int64_t up, int64_t down,
                    int64_t left, int64_t above, double slope, double gain, double limit,
                    cudaStream_t stream) {
  check(n, c, h, w, R, S, oh, ow, t, s, up, down);
  if (n * c == 0) return;  // an empty grid is a launch error
  const Axis rows{int(h), int(R), int(oh), int(above), 0},
      columns{int(w), int(S), int(ow), int(left), 0};
  const Filters<T> f{up_taps, down_taps, int(t), int(s), int(up), int(down), true, T(up * up)};
  const Activation<T> act{mask, T(slope), T(gain), T(limit)};
  const std::size_t bytes = shared_bytes(f, filtered_lrelu_fwd_kernel<T>);
  const dim3 grid = grid_of(n, c, rows, columns), block(kLanes, kWarps);
  KD_LAUNCH(filtered_lrelu_fwd_kernel<T>, grid, block, bytes, stream, x, bias, out, c, rows,
            columns, f, act);
}

// partials [n, ceil(h / 16) * ceil(w / 16), c].
template <typename T>
void filtered_lrelu_bwd(const T* grad, const uint8_t* mask, const T* up_taps, const T* down_taps,
                        T* dx, T* dbias, T* partials, int64_t n, int64_t c, int64_t h, int64_t w,
                        int64_t R, int64_t S, int64_t oh, int64_t ow, int64_t t, int64_t s,
                        int64_t up, int64_t down, int64_t left, int64_t above, double slope,
                        double gain, cudaStream_t stream) {
  check(n, c, h, w, R, S, oh, ow, t, s, up, down);
  const Axis rows{int(oh), int(R), int(h), int(s - 1), int(above - t + 1)};
  const Axis columns{int(ow), int(S), int(w), int(s - 1), int(left - t + 1)};
  const Filters<T> f{down_taps, up_taps, int(s), int(t), int(down), int(up), false, T(up * up)};
  const dim3 grid = grid_of(n, c, rows, columns);
  if (n * c > 0) {
    const std::size_t bytes = shared_bytes(f, filtered_lrelu_bwd_kernel<T>);
    KD_LAUNCH(filtered_lrelu_bwd_kernel<T>, grid, dim3(kLanes, kWarps), bytes, stream, grad, dx,
              partials, c, rows, columns, f, Derivative<T>{mask, T(slope), T(gain)});
  }
  if (c == 0) return;
  KD_LAUNCH(filtered_lrelu_sum_kernel<T>, dim3(ceil_div(c, int64_t{128})), dim3(128), 0, stream,
            partials, dbias, n * grid.y, c);
}

KD_INSTANTIATE(filtered_lrelu)
KD_INSTANTIATE(filtered_lrelu_bwd)

}  // namespace kd::cuda
