"""Published formulations in plain PyTorch for comparison; kdistill imports none of them."""
