// Loss, EL2N, margin, entropy and correctness of every row of logits against its label.
// Truth: kdistill/backends/reference/softmax_scores.py
//   logits [n, k], labels int64 [n] or soft, the logits of soft labels [n, k] (the other is null),
//   out [5, n]: row-major, contiguous.
// One read of a row from memory and a second from the cache: the largest logit, then one
// exponential per logit and three sums.  Everything near 1 is the sum of what is missing from 1, so
// that a sure network's loss, EL2N and entropy keep their digits.
#include <cmath>
#include <cstdint>

#include "common/check.hpp"
#include "cpu/exponential.hpp"
#include "cpu/ops.hpp"

namespace kd::KD_ISA {
namespace {

// logits under which waking a second thread costs more than it saves
constexpr int64_t kGrain = 1 << 13;

template <typename T>
struct Rows {
  static constexpr int kLanes = kVectorBytes / int(sizeof(T));
  using Bits = typename Exponential<T>::Bits;
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef Bits Index __attribute__((vector_size(kVectorBytes)));

  static KD_INLINE Index lanes() {
    Index index;
    for (int lane = 0; lane < kLanes; ++lane) index[lane] = Bits(lane);
    return index;
  }

  // body(vector of values, their columns) for a whole row; past its end the values are -inf
  template <typename F>
  static KD_INLINE void each(const T* row, int64_t k, const T* end, const F& body) {
    int64_t i = 0;
    const Index lane = lanes();
    for (; i + kLanes <= k; i += kLanes) body(load<Vector>(row + i), lane + Bits(i));
    if (i == k) return;
    Vector last = Vector{} - T(INFINITY);
    // the load may reach into the next row, whose lanes are left out
    if (end - (row + i) >= kLanes) {
      last = lane < Bits(k - i) ? load<Vector>(row + i) : last;
    } else {
      for (int64_t rest = 0; rest < k - i; ++rest) last[rest] = row[i + rest];
    }
    body(last, lane + Bits(i));
  }

  static KD_INLINE T sum(Vector v) {
    T total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += v[lane];
    return total;
  }

  static KD_INLINE T largest(Vector v) {
    T most = v[0];
    for (int lane = 1; lane < kLanes; ++lane) most = v[lane] > most ? v[lane] : most;
    return most;
  }

  static KD_INLINE T exponential_of(T x) { return exponential<T>(Vector{} + x)[0]; }

  // what the statistics of a row need of its logits and its own class
  struct Shape {
    // logits: of the class, the largest of the others, the larger of the two
    T own, other, most;
    T own_e, other_e;  // e^(logit - most)
    // over the other classes the sums of e and of e^2; over all classes those of e * (logit - most)
    // and of e
    T rest, squares, moment, sum;
    // log of sum; where the own class is the largest, from what is missing from 1
    T log_sum;
    bool correct;
  };

  static KD_INLINE Shape shape(const T* row, int64_t k, const T* end, int64_t own) {
    Shape s;
    Vector most = Vector{} - T(INFINITY);
    each(row, k, end, [&](Vector a, Index i) {
      const Vector other = i == Bits(own) ? Vector{} - T(INFINITY) : a;
      most = other > most ? other : most;
    });
    s.own = row[own];
    s.other = largest(most);
    s.most = s.own > s.other ? s.own : s.other;
    Vector rest{}, squares{}, moment{};
    each(row, k, end, [&](Vector a, Index i) {
      const Vector shifted = a - s.most;
      const Vector e = exponential<T>(shifted);
      moment += e * (shifted < Exponential<T>::least ? Vector{} : shifted);
      const Vector other = i == Bits(own) ? Vector{} : e;
      rest += other;
      squares += other * other;
    });
    s.rest = sum(rest);
    s.squares = sum(squares);
    s.moment = sum(moment);
    Vector two = Vector{} + (s.own - s.most);
    two[1] = s.other - s.most;
    two = exponential<T>(two);
    s.own_e = two[0];
    s.other_e = two[1];
    s.sum = s.rest + s.own_e;
    s.log_sum = s.own_e == T(1) ? std::log1p(s.rest) : std::log(s.sum);
    s.correct = s.sum == s.sum && (s.own > s.other || (s.own == s.other && is_first(row, own)));
    return s;
  }

  // of equal largest logits the first counts
  static bool is_first(const T* row, int64_t own) {
    for (int64_t i = 0; i < own; ++i) {
      if (row[i] == row[own]) return false;
    }
    return true;
  }

  static void hard(const T* row, int64_t k, const T* end, int64_t own, T* out, int64_t n) {
    const Shape s = shape(row, k, end, own);
    out[0] = s.log_sum - (s.own - s.most);
    out[n] = std::sqrt(s.squares + s.rest * s.rest) / s.sum;
    out[2 * n] = (s.other_e - s.own_e) / s.sum;
    out[3 * n] = s.log_sum - s.moment / s.sum;
    out[4 * n] = s.correct ? T(1) : T(0);
  }

  static void soft(const T* row, const T* label, int64_t k, const T* end, const T* label_end,
                   T* out, int64_t n) {
    int64_t own = 0;
    for (int64_t i = 1; i < k; ++i) own = label[i] > label[own] ? i : own;
    const Shape s = shape(row, k, end, own);
    Vector parts{};
    each(label, k, label_end, [&](Vector z, Index) { parts += exponential<T>(z - label[own]); });
    const T whole = sum(parts);
    Vector loss{}, distance{};
    for (int64_t i = 0; i < k; i += kLanes) {
      Vector a = Vector{} - T(INFINITY), z = a;
      const int64_t count = k - i < kLanes ? k - i : kLanes;
      for (int64_t lane = 0; lane < count; ++lane) {
        a[lane] = row[i + lane];
        z[lane] = label[i + lane];
      }
      const Vector t = exponential<T>(z - label[own]) / whole, shifted = a - s.most;
      const Vector apart = exponential<T>(shifted) / s.sum - t;
      loss += t == T(0) ? Vector{} : t * (s.log_sum - shifted);
      distance += apart * apart;
    }
    out[0] = sum(loss);
    out[n] = std::sqrt(sum(distance));
    out[2 * n] = (s.other_e - s.own_e) / s.sum;
    out[3 * n] = s.log_sum - s.moment / s.sum;
    out[4 * n] = s.correct ? T(1) : T(0);
  }
};

}  // namespace

template <typename T>
void softmax_scores(const T* logits, const int64_t* labels, const T* soft, T* out, int64_t n,
                    int64_t k, int threads) {
  KD_CHECK(n >= 0 && k >= 2 && k <= INT32_MAX && threads > 0,
           "softmax_scores: expected n >= 0, k in 2..2^31-1 and threads > 0");
  const T* end = logits + n * k;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * k > kGrain)
  for (int64_t i = 0; i < n; ++i) {
    if (soft) {
      Rows<T>::soft(logits + i * k, soft + i * k, k, end, soft + n * k, out + i, n);
    } else {
      Rows<T>::hard(logits + i * k, k, end, labels[i], out + i, n);
    }
  }
}

KD_INSTANTIATE(softmax_scores)

}  // namespace kd::KD_ISA
