"""DM: match the mean embedding of every class under random networks.

Paper: Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023 (eq. 5,
    algorithm 1).

    min_S  E_theta,omega  sum_c | mean_{x in T_c} psi_theta(A(x; omega_c))
                                  - mean_{x in S_c} psi_theta(A(x; omega_c)) |^2

The worked example of CONTRIBUTING.md.  Lines marked with PAD belong to that paper's variant of DM;
another method derives from ``MethodConfig`` and has none of them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.data.splits import ClassSampler
from kdistill.errors import ConfigError
from kdistill.keys import generator, make_key
from kdistill.methods import Method, Problem, Step, balanced_labels, initial_images
from kdistill.methods.difficulty import AlignedConfig
from kdistill.objectives.distribution_matching import distribution_match, layered_distribution_match
from kdistill.optim import FirstMove, by_name
from kdistill.options import AUTOMATIC, COUNT, NOT_NEGATIVE
from kdistill.priors import State, pixel_prior


@dataclass(frozen=True, kw_only=True)
class DMConfig(AlignedConfig):  # PAD: MethodConfig without it
    """Options of DM beside those that every method has; the defaults are the paper's for CIFAR-10.

    Attributes:
        iterations: Outer steps; every one draws a new network.
        batch_real: Real images of each class per step.
        lr_images: Learning rate of the images (normalised pixels); where it is found, the first
            step moves them by ``first_move``.
        layers: ``"last"`` compares the features before the classifier, ``"all"`` the feature maps
            of every block.
        mask_ratio: Share of the blocks, shallow ones first, that ``layers="all"`` leaves out (PAD's
            FIEM).
    """

    iterations: int = 20_000
    batch_real: Annotated[int, COUNT] = 256
    lr_images: Annotated[float | None, NOT_NEGATIVE, AUTOMATIC] = 1.0
    layers: Literal["last", "all"] = "last"  # PAD

    def __post_init__(self) -> None:  # PAD
        super().__post_init__()
        if self.layers == "last" and self.mask_ratio > 0.0:
            raise ConfigError(
                f"mask_ratio: expected 0 with layers=last, got {self.mask_ratio:g}; set layers=all "
                "too"
            )


def build(
    config: DMConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run: network, real batch and augmentation are new in every iteration, by key."""
    student = config.network(data)
    augment = config.augmentation(data, make_key(seed, "augment"), siamese=True)
    real = config.selected(data).train  # PAD: data.train without it
    images_real = data.transform.apply(real.images)
    labels_real = real.labels.cpu()  # batches are drawn on the host
    labels = balanced_labels(data.num_classes, ipc)
    sampler = ClassSampler(labels_real, data.num_classes)
    match = distribution_match
    if config.layers == "all":  # PAD
        match = partial(layered_distribution_match, mask_ratio=config.mask_ratio)

    def objective(iteration: int, images: Tensor, state: State) -> Step:
        key = make_key(seed, "student", iteration)
        theta = student.init(generator(key)).to(images, non_blocking=True)
        rows = sampler.draw(config.batch_real, make_key(seed, "real", iteration))
        loss, grad_images = match(
            student,
            theta,
            images_real[rows.to(images_real.device, non_blocking=True)],
            labels_real[rows],
            images,
            labels,
            augment=augment,
            step=iteration,
        )
        return Step(loss, grad_images)

    images = initial_images(data, ipc, config.init, seed) if start is None else start
    find = FirstMove(share=config.first_move)
    return Problem(
        prior=pixel_prior(data.transform, eight_bit=config.eight_bit),
        state={"images": images.clone()},
        labels=labels.to(images_real.device),
        objective=objective,
        optimizer=by_name({"images": config.sgd(config.lr_images, find=find)}),
        iterations=config.iterations,
        provenance=config.table_identity(data),  # PAD
    )


METHOD = Method(
    name="dm",
    title="distribution matching of class means under random networks",
    summary="class means of features under random networks",
    family="distribution",
    paper="Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023",
    config=DMConfig,
    presets={
        "paper": {},
        "fast": {
            "iterations": 800,
            "batch_real": 128,
            "width": 32,
            "lr_images": None,
            "init": "k_means",
            "score_nets": 3,  # PAD
            "score_epochs": 3,  # PAD
        },
    },
    build=build,
    deviations=("all classes in one batched pass; randomness is keyed, not taken from the clock",),
    cost="first order; one forward pass over the real batch and one forward and backward over the "
    "synthetic set per step",
)
