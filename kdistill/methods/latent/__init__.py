"""Latents of a generator under the objective of another method."""
