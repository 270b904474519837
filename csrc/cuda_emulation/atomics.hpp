// Atomics and cached loads: only one fiber runs at a time, so plain loads and stores are atomic.
// CUDA's overloads, no more.
#pragma once

namespace kd::emulation {

template <typename T>
T exchange(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}

}  // namespace kd::emulation

#define KD_ATOMIC(name, T, result) \
  inline T name(T* address, T value) { return kd::emulation::exchange<T>(address, result); }
#define KD_ATOMIC_INTEGERS(name, result) \
  KD_ATOMIC(name, int, int(result))      \
  KD_ATOMIC(name, unsigned int, result)  \
  KD_ATOMIC(name, unsigned long long, result)

// the sum of signed numbers wraps around on the device
KD_ATOMIC(atomicAdd, int, int(unsigned(*address) + unsigned(value)))
KD_ATOMIC(atomicAdd, unsigned int, *address + value)
KD_ATOMIC(atomicAdd, unsigned long long, *address + value)
KD_ATOMIC(atomicAdd, float, *address + value)
KD_ATOMIC(atomicAdd, double, *address + value)
KD_ATOMIC(atomicSub, int, int(unsigned(*address) - unsigned(value)))
KD_ATOMIC(atomicSub, unsigned int, *address - value)
KD_ATOMIC(atomicExch, float, value)
KD_ATOMIC_INTEGERS(atomicExch, value)
KD_ATOMIC_INTEGERS(atomicMax, (*address > value ? *address : value))
KD_ATOMIC(atomicMax, long long, *address > value ? *address : value)
KD_ATOMIC_INTEGERS(atomicMin, (*address < value ? *address : value))
KD_ATOMIC(atomicMin, long long, *address < value ? *address : value)
KD_ATOMIC_INTEGERS(atomicAnd, (*address & value))
KD_ATOMIC_INTEGERS(atomicOr, (*address | value))
KD_ATOMIC_INTEGERS(atomicXor, (*address ^ value))

#undef KD_ATOMIC_INTEGERS
#undef KD_ATOMIC

inline int atomicCAS(int* address, int expected, int value) {
  return kd::emulation::exchange(address, *address == expected ? value : *address);
}
inline unsigned int atomicCAS(unsigned int* address, unsigned int expected, unsigned int value) {
  return kd::emulation::exchange(address, *address == expected ? value : *address);
}
inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long expected,
                                    unsigned long long value) {
  return kd::emulation::exchange(address, *address == expected ? value : *address);
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
