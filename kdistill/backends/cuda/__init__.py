"""CUDA C++ kernels of csrc/cuda, or their emulation on CPU tensors."""
