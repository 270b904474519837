// Barriers and warp operations.  A warp is 32 neighbours in the linear order of threadIdx (x
// fastest), as on the device.
#pragma once
#include <cstdint>
#include <cstring>

namespace kd::emulation {

enum class Wait : std::uint8_t {
  none,
  returned,
  barrier,
  syncwarp,
  ballot,
  any,
  all,
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor
};

// Waits for all threads of the block; how many of them brought predicate != 0.
// `name` is what the kernel called.  The place is part of the barrier: CUDA wants one barrier
// reached by all.
int block_barrier(bool predicate, const char* name, const char* file, int line);

// Waits for the lanes in `mask`, which all call it with one `wait`, mask and width; returns what
// this lane is to receive.
std::uint64_t warp_operation(Wait wait, unsigned mask, std::uint64_t value, int argument, int width,
                             const char* name, const char* file, int line);

template <typename T>
T warp_shuffle(Wait wait, unsigned mask, T value, int argument, int width, const char* name,
               const char* file, int line) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8,
                "a shuffle moves 2, 4 or 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_operation(wait, mask, bits, argument, width, name, file, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace kd::emulation

// where the kernel calls it, for the report
#define KD_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(KD_PLACE) {
  kd::emulation::block_barrier(false, "__syncthreads", file, line);
}
inline int __syncthreads_count(int predicate, KD_PLACE) {
  return kd::emulation::block_barrier(predicate != 0, "__syncthreads_count", file, line);
}
inline int __syncthreads_or(int predicate, KD_PLACE) {
  return kd::emulation::block_barrier(predicate != 0, "__syncthreads_or", file, line) > 0;
}
inline int __syncthreads_and(int predicate, KD_PLACE) {
  return kd::emulation::block_barrier(predicate == 0, "__syncthreads_and", file, line) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, KD_PLACE) {
  kd::emulation::warp_operation(kd::emulation::Wait::syncwarp, mask, 0, 0, 32, "__syncwarp", file,
                                line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, KD_PLACE) {
  const std::uint64_t bit = predicate != 0;
  return unsigned(kd::emulation::warp_operation(kd::emulation::Wait::ballot, mask, bit, 0, 32,
                                                "__ballot_sync", file, line));
}
inline int __any_sync(unsigned mask, int predicate, KD_PLACE) {
  const std::uint64_t bit = predicate != 0;
  return kd::emulation::warp_operation(kd::emulation::Wait::any, mask, bit, 0, 32, "__any_sync",
                                       file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, KD_PLACE) {
  const std::uint64_t bit = predicate == 0;
  return kd::emulation::warp_operation(kd::emulation::Wait::all, mask, bit, 0, 32, "__all_sync",
                                       file, line) == 0;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source_lane, int width = 32, KD_PLACE) {
  return kd::emulation::warp_shuffle(kd::emulation::Wait::shuffle, mask, value, source_lane, width,
                                     "__shfl_sync", file, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, KD_PLACE) {
  return kd::emulation::warp_shuffle(kd::emulation::Wait::shuffle_up, mask, value, int(delta),
                                     width, "__shfl_up_sync", file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, KD_PLACE) {
  return kd::emulation::warp_shuffle(kd::emulation::Wait::shuffle_down, mask, value, int(delta),
                                     width, "__shfl_down_sync", file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, KD_PLACE) {
  return kd::emulation::warp_shuffle(kd::emulation::Wait::shuffle_xor, mask, value, lane_mask,
                                     width, "__shfl_xor_sync", file, line);
}

#undef KD_PLACE

// Fibers of one OS thread see each other's writes at once.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
