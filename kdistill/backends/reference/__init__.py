"""PyTorch, any dtype and device: the definition of truth."""
