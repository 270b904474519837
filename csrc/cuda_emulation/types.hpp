// dim3, the built-in vectors and the built-in variables, with CUDA's names, members and alignment.
#pragma once

#define KD_VECTOR2(T, name, alignment)           \
  struct alignas(alignment) name##2 { T x, y; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }
#define KD_VECTOR3(T, name)      \
  struct name##3 { T x, y, z; }; \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }
#define KD_VECTOR4(T, name, alignment)                 \
  struct alignas(alignment) name##4 { T x, y, z, w; }; \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define KD_VECTORS(T, name, size) \
  KD_VECTOR2(T, name, 2 * (size)) \
  KD_VECTOR3(T, name)             \
  KD_VECTOR4(T, name, (size) < 4 ? 4 * (size) : 16)

KD_VECTORS(signed char, char, 1)
KD_VECTORS(unsigned char, uchar, 1)
KD_VECTORS(short, short, 2)
KD_VECTORS(unsigned short, ushort, 2)
KD_VECTORS(int, int, 4)
KD_VECTORS(unsigned int, uint, 4)
KD_VECTORS(float, float, 4)
KD_VECTOR2(long long, longlong, 16)
KD_VECTOR2(unsigned long long, ulonglong, 16)
KD_VECTOR2(double, double, 16)
KD_VECTOR3(double, double)

#undef KD_VECTORS
#undef KD_VECTOR4
#undef KD_VECTOR3
#undef KD_VECTOR2

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// Not const, although kernels only read them: the compiler must load them again after a barrier.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;
