"""C++ kernels of csrc/cpu."""
