"""The settings that decide an expert trajectory."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from kdistill.options import COUNT, MOMENTUM, NOT_NEGATIVE, POSITIVE, check_options


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """Settings of expert training; the defaults are MTT's.

    Attributes:
        count: Number of experts.
        epochs: Passes over the data: snapshots 0 (untrained) to ``epochs`` are stored, so no more
            than a method uses.
        optimiser: ``"sgd"``, or ``"gsam"`` (FTD: flat trajectories; two gradients per step).
        lr: Learning rate of SGD, constant.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        strategy: DSA families of the augmentation, or ``"none"``.
        rho: Radius of the perturbation of GSAM, relative to the weights.
        surrogate: Weight a of the part of the gradient orthogonal to the perturbed one, subtracted
            by GSAM.
        seed: Seed of all experts; expert i does not depend on ``count``.

    Raises:
        ConfigError: A number out of range, or an unknown optimiser.
    """

    count: Annotated[int, COUNT] = 100
    epochs: Annotated[int, COUNT] = 50
    optimiser: Literal["sgd", "gsam"] = "sgd"
    lr: Annotated[float, POSITIVE] = 0.01
    batch_size: Annotated[int, COUNT] = 256
    momentum: Annotated[float, MOMENTUM] = 0.0
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    rho: Annotated[float, NOT_NEGATIVE] = 0.01
    surrogate: Annotated[float, NOT_NEGATIVE] = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, "experts")

    def identity(
        self, data: dict[str, Any], student: str, selection: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return what must be equal for a stored trajectory to be this one.

        That is everything but ``count``.  ``selection`` says which images every epoch trains on;
        None stands for all of them.
        """
        settings = {key: value for key, value in asdict(self).items() if key != "count"}
        identity = {"settings": settings, "data": data, "student": student}
        return identity if selection is None else {**identity, "selection": selection}
