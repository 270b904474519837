"""Settings of a training that takes a second."""

TINY = {
    "iterations": 12,
    "batch_size": 4,
    "channel_base": 64,
    "channel_max": 8,
    "z_dim": 4,
    "w_dim": 4,
    "r1_every": 3,
    "quality_images": 60,
    "quality_steps": 2,
    "quality_width": 4,
}

TINY_DIFFUSION = {
    "iterations": 12,
    "batch_size": 4,
    "widths": (8,),
    "embedding": 8,
    "steps": 2,
    "quality_images": 60,
    "quality_steps": 2,
    "quality_width": 4,
}
