"""DSA: gradient matching under differentiable siamese augmentation.

Paper: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021
    (eq. 6, algorithm 1).

As ``dc``, with the real and the synthetic images of a class under the same transformation in every
matching step, and with augmentation in the training of the network.
"""

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.methods.base import Method, Problem
from kdistill.methods.matching.base import FAST, GradientConfig, build_gradient


def build(
    config: GradientConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run."""
    return build_gradient(config, data, ipc, seed, start)


METHOD = Method(
    name="dsa",
    title="gradient matching under one differentiable augmentation for the real and the synthetic images of a class",
    summary="as dc, under one augmentation for real and synthetic images",
    family="gradient",
    paper="Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021",
    config=GradientConfig,
    presets={
        # every published data set and number of images per class: the loops follow the latter
        "paper": {},
        "fast": FAST,
        # the pixel baseline of Cazenavette et al., Generalizing Dataset Distillation via Deep
        # Generative Prior, CVPR 2023, for subsets of ImageNet at 128 pixels, 1 image per class
        "imagenet128": {"init": "noise", "lr_images": 1.0, "outer_steps": 1, "inner_epochs": 1},
    },
    build=build,
    deviations=(
        "all classes in one call; randomness is keyed, not taken from the clock",
        "the extra pass after the last network is left out; numbers of images per class outside "
        "the published table run, too",
    ),
    cost="second order; 3 products per convolution on the real batch, 7 on the synthetic images, then epochs of training",
)
