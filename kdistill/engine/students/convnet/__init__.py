"""The ConvNet of the field."""
