"""What a method minimises: images and labels in, loss and dL/dimages out, no autograd graph."""
