// Loss, EL2N, margin, entropy and correctness of every row of logits against its label.
// Truth: kdistill/backends/reference/softmax_scores.py
//   logits [n, k], labels int64 [n] or soft, the logits of soft labels [n, k] (the other is null),
//   out [5, n]: row-major, contiguous.
// A warp per row, neighbouring lanes on neighbouring logits: the largest logit, then one
// exponential per logit and three sums; the second read comes from L1.  Butterfly sums: every lane
// has the same bits, and two runs agree.
#include "cuda/ops.hpp"

namespace kd::cuda {
namespace {

constexpr int kWarp = 32, kRowsPerBlock = 8;
constexpr unsigned kAll = 0xffffffffu;

template <typename T>
__device__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

template <typename T>
__device__ T warp_largest(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAll, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// of the largest values of a row the first column; a row of NaN gives 0
template <typename T>
__device__ int64_t warp_first_largest(const T* row, int64_t k, int lane) {
  T most = -INFINITY;
  for (int64_t i = lane; i < k; i += kWarp) most = row[i] > most ? row[i] : most;
  most = warp_largest(most);
  long long first = k;
  for (int64_t i = k - 1 - lane; i >= 0; i -= kWarp) first = row[i] == most ? i : first;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const long long other = __shfl_xor_sync(kAll, first, step);
    first = other < first ? other : first;
  }
  return first < k ? first : 0;
}

template <typename T>
__global__ void softmax_scores_kernel(const T* logits, const int64_t* labels, const T* soft, T* out,
                                      int64_t n, int64_t k) {
  const int lane = threadIdx.x % kWarp;
  const int64_t i = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp;
  if (i >= n) return;  // a whole warp
  const T *row = logits + i * k, *z = soft ? soft + i * k : nullptr;
  const int64_t label = soft ? warp_first_largest(z, k, lane) : labels[i];
  const bool outside = label < 0 || label >= k;
  const int64_t own = outside ? 0 : label;

  T other = -INFINITY;
  for (int64_t j = lane; j < k; j += kWarp) other = j != own && row[j] > other ? row[j] : other;
  other = warp_largest(other);
  const T own_logit = row[own], most = own_logit > other ? own_logit : other;
  T rest = 0, squares = 0, moment = 0, whole = 0;
  int before = 0;  // equals of the own logit in front of it
  for (int64_t j = lane; j < k; j += kWarp) {
    const T shifted = row[j] - most, e = exp(shifted);
    moment += e == T(0) ? T(0) : e * shifted;
    rest += j == own ? T(0) : e;
    squares += j == own ? T(0) : e * e;
    before += j < own && row[j] == own_logit;
    if (soft) whole += exp(z[j] - z[own]);
  }
  rest = warp_sum(rest);
  squares = warp_sum(squares);
  moment = warp_sum(moment);
  before = warp_sum(before);
  whole = warp_sum(whole);
  const T own_e = exp(own_logit - most), other_e = exp(other - most), sum = rest + own_e;
  const T log_sum = own_e == T(1) ? log1p(rest) : log(sum);
  T loss = log_sum - (own_logit - most), distance = squares + rest * rest;
  if (soft) {
    loss = distance = 0;
    for (int64_t j = lane; j < k; j += kWarp) {
      const T t = exp(z[j] - z[own]) / whole, shifted = row[j] - most,
              apart = exp(shifted) / sum - t;
      loss += t == T(0) ? T(0) : t * (log_sum - shifted);
      distance += apart * apart;
    }
    loss = warp_sum(loss);
    distance = warp_sum(distance) * sum * sum;
  }
  if (lane != 0) return;
  const bool correct =
      sum == sum && !outside && (own_logit > other || (own_logit == other && before == 0));
  const T missing = outside ? T(NAN) : T(0);
  out[i] = loss + missing;
  out[n + i] = sqrt(distance) / sum + missing;
  out[2 * n + i] = (other_e - own_e) / sum + missing;
  out[3 * n + i] = log_sum - moment / sum + missing;
  out[4 * n + i] = correct ? T(1) : T(0);
}

}  // namespace

template <typename T>
void softmax_scores(const T* logits, const int64_t* labels, const T* soft, T* out, int64_t n,
                    int64_t k, cudaStream_t stream) {
  if (n == 0) return;  // an empty grid is a launch error
  const int64_t blocks = ceil_div(n, kRowsPerBlock);
  KD_CHECK(blocks <= INT32_MAX, "softmax_scores: expected at most 2^34 rows; split them");
  KD_LAUNCH(softmax_scores_kernel<T>, dim3(blocks), dim3(kRowsPerBlock * kWarp), 0, stream, logits,
            labels, soft, out, n, k);
}

KD_INSTANTIATE(softmax_scores)

}  // namespace kd::cuda
