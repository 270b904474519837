"""DC: match the gradients of a network on the synthetic and on the real images of every class.

Paper: Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021 (eq. 8 and
    9, algorithm 1).

    min_S  E_theta_0  sum_o sum_c  D(grad_theta l(S_c; theta_o), grad_theta l(T_c; theta_o)),
    theta_{o+1}: theta_o trained on S

D sums 1 - cos over the rows of all weights, one per output unit.  The gradient in the images is
exact and needs no graph of a gradient (``kdistill.engine.gradient_match``).
"""

from dataclasses import dataclass

from kdistill.methods.base import Method
from kdistill.methods.matching.base import COST, DEVIATIONS, FAST, GradientConfig, build_gradient


@dataclass(frozen=True, kw_only=True)
class DCConfig(GradientConfig):
    """Options of DC: those of gradient matching, without augmentation and from noise."""

    strategy: str = "none"
    init: str = "noise"


METHOD = Method(
    name="dc",
    title="matching the gradients of networks in training, class by class and output unit by "
    "output unit",
    summary="gradients of networks in training, class by class",
    family="gradient",
    paper="Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021",
    config=DCConfig,
    presets={
        # every published data set and number of images per class: the loops follow the latter
        "paper": {},
        "fast": FAST,
    },
    build=build_gradient,
    deviations=DEVIATIONS,
    cost=COST,
)
