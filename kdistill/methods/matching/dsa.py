"""DSA: gradient matching under differentiable siamese augmentation.

Paper: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021
    (eq. 6, algorithm 1).

As ``dc``, with the real and the synthetic images of a class under the same transformation in every
matching step, and with augmentation in the training of the network.
"""

from kdistill.methods.base import Method
from kdistill.methods.matching.base import COST, DEVIATIONS, FAST, GradientConfig, build_gradient

METHOD = Method(
    name="dsa",
    title="gradient matching under one differentiable augmentation for the real and the synthetic "
    "images of a class",
    summary="as dc, under one augmentation for real and synthetic images",
    family="gradient",
    paper="Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML "
    "2021",
    config=GradientConfig,
    presets={
        # every published data set and number of images per class: the loops follow the latter
        "paper": {},
        "fast": FAST,
        # the pixel baseline of Cazenavette et al., Generalizing Dataset Distillation via Deep
        # Generative Prior, CVPR 2023, for subsets of ImageNet at 128 pixels, 1 image per class
        "imagenet128": {"init": "noise", "lr_images": 1.0, "outer_steps": 1, "inner_epochs": 1},
    },
    build=build_gradient,
    deviations=DEVIATIONS,
    cost=COST,
)
