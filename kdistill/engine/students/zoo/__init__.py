"""The students other than the ConvNet."""
