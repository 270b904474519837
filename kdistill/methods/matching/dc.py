"""DC: match the gradients of a network on the synthetic and on the real images of every class.

Paper: Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 (eq. 8 and
    9, algorithm 1).

    min_S  E_theta_0  sum_o sum_c  D(grad_theta l(S_c; theta_o), grad_theta l(T_c; theta_o)),
    theta_{o+1}: theta_o trained on S

D sums 1 - cos over the rows of all weights, one per output unit.  The gradient in the images is
exact and needs no graph of a gradient (``kdistill.engine.gradient_match``).
"""

from dataclasses import dataclass

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.methods.base import Method, Problem
from kdistill.methods.matching.base import FAST, GradientConfig, build_gradient


@dataclass(frozen=True, kw_only=True)
class DCConfig(GradientConfig):
    """Options of DC: those of gradient matching, without augmentation and from noise."""

    strategy: str = "none"
    init: str = "noise"


def build(
    config: DCConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run."""
    return build_gradient(config, data, ipc, seed, start)


METHOD = Method(
    name="dc",
    title="matching the gradients of networks in training, class by class and output unit by output unit",
    summary="gradients of networks in training, class by class",
    family="gradient",
    paper="Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021",
    config=DCConfig,
    presets={
        # every published data set and number of images per class: the loops follow the latter
        "paper": {},
        "fast": FAST,
    },
    build=build,
    deviations=(
        "all classes in one call; randomness is keyed, not taken from the clock",
        "the extra pass after the last network is left out; numbers of images per class outside "
        "the published table run, too",
    ),
    cost="second order; 3 products per convolution on the real batch, 7 on the synthetic images, then epochs of training",
)
