"""Methods whose product is a generator of images."""
