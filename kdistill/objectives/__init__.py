"""What a method minimises: images and labels in, loss and gradient in the images out, no autograd graph."""
