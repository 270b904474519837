"""Published formulations in plain PyTorch, written for comparison; nothing in kdistill imports them."""
