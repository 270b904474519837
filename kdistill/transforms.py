"""Normalisation and ZCA as recorded, invertible transforms from pixel space.

Images are stored in pixel space, [0, 1]; networks take ``transform.apply(images)``.  The transform
travels with every data set and artefact as ``kind`` and ``state()``, so nobody has to guess in
which space a tensor lives.

Symbols: N images, C channels, H × W pixels, D = C·H·W.  All maps are affine, act on the last
    dimensions of ``[..., C, H, W]``,
work in the dtype and on the device of the images, and can be differentiated as often as wanted in
the images.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from kdistill.errors import ConfigError, DataError, ShapeError, did_you_mean

ZCA_EPS = 0.1  # the field's value (MTT, DATM, PAD), for pixels in [0, 1]
# far below one 8-bit step (0.0039): such a channel is constant, and is shifted but not scaled
CONSTANT_STD = 1e-4
CHUNK = 1024  # images that are widened to float64 at a time while fitting


class Transform(ABC):
    """An invertible map from pixel space to normalised images."""

    kind: ClassVar[str]

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Return pixel-space ``images [..., C, H, W]`` normalised; same shape, dtype and device."""

    @abstractmethod
    def invert(self, images: Tensor) -> Tensor:
        """Return the pixel-space images of normalised ``images [..., C, H, W]``, unclipped."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the tensors that ``from_state`` rebuilds this transform from, bit by bit."""

    def to(self, device: torch.device | str) -> "Transform":
        """Return the same transform with its tensors on ``device``."""
        return from_state(self.kind, {name: x.to(device) for name, x in self.state().items()})


@dataclass(frozen=True, eq=False)
class Identity(Transform):
    """Networks see the pixels themselves."""

    kind: ClassVar[str] = "none"

    def apply(self, images: Tensor) -> Tensor:
        """Return ``images``."""
        return images

    def invert(self, images: Tensor) -> Tensor:
        """Return ``images``."""
        return images

    def state(self) -> dict[str, Tensor]:
        """Return no tensor."""
        return {}


@dataclass(frozen=True, eq=False)
class Standardise(Transform):
    """Subtract the mean of each channel and divide by its standard deviation.

    Attributes:
        mean: ``[C]``, in pixel units.
        std: ``[C]``, in pixel units, positive.

    Raises:
        ShapeError: ``mean`` and ``std`` are not both ``[C]``.
        DataError: A value is not finite, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor
    kind: ClassVar[str] = "standard"

    def __post_init__(self):
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ShapeError(
                f"Standardise: expected mean [C] and std [C], got {list(self.mean.shape)} and "
                f"{list(self.std.shape)}; give one number per channel"
            )
        _check_finite("Standardise", mean=self.mean, std=self.std)
        if not (self.std > 0).all():
            raise DataError(
                f"Standardise: expected std > 0, got {self.std.tolist()}; use 1 for a constant "
                "channel"
            )

    def apply(self, images: Tensor) -> Tensor:
        """Return ``(images - mean) / std``."""
        mean, std = self._per_channel(images)
        return (images - mean) / std

    def invert(self, images: Tensor) -> Tensor:
        """Return ``images * std + mean``."""
        mean, std = self._per_channel(images)
        return images * std + mean

    def state(self) -> dict[str, Tensor]:
        """Return ``mean`` and ``std``."""
        return {"mean": self.mean, "std": self.std}

    def _per_channel(self, images: Tensor) -> tuple[Tensor, Tensor]:
        channels = len(self.mean)
        _check_images(
            images,
            images.ndim >= 3 and images.shape[-3] == channels,
            f"Standardise: expected images [..., {channels}, H, W]",
        )
        return self.mean.to(images).view(-1, 1, 1), self.std.to(images).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class Zca(Transform):
    """Whitening: ``(x - mean) @ matrix`` on flattened images, back with ``z @ inverse + mean``.

    Attributes:
        mean: ``[D]``, in pixel units.
        matrix: ``[D, D]``, symmetric, ``U diag(1/sqrt(s + eps)) U^T``.
        inverse: ``[D, D]``, symmetric, ``U diag(sqrt(s + eps)) U^T``.

    Cost: ``2·N·D²`` flops for N images; the two matrices take ``8·D²`` bytes in float32 (75 MB at
        3×32×32).
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    kind: ClassVar[str] = "zca"
    _cast: dict = field(
        init=False, default_factory=dict, repr=False
    )  # a copy of the tensors per dtype and device that was asked for

    def __post_init__(self):
        d = self.mean.numel()
        if self.mean.ndim != 1 or self.matrix.shape != (d, d) or self.inverse.shape != (d, d):
            raise ShapeError(
                "Zca: expected mean [D], matrix [D, D] and inverse [D, D], got "
                f"{list(self.mean.shape)}, {list(self.matrix.shape)} and "
                f"{list(self.inverse.shape)}; use fit('zca', images)"
            )
        _check_finite("Zca", **self.state())

    def apply(self, images: Tensor) -> Tensor:
        """Return the whitened images."""
        mean, matrix, _ = self._like(images)
        return ((images.flatten(-3) - mean) @ matrix).reshape(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        """Return the images of which ``images`` is the whitening."""
        mean, _, inverse = self._like(images)
        return (images.flatten(-3) @ inverse + mean).reshape(images.shape)

    def state(self) -> dict[str, Tensor]:
        """Return ``mean``, ``matrix`` and ``inverse``."""
        return {"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}

    def _like(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d = self.mean.numel()
        _check_images(
            images,
            images.ndim >= 3 and images.shape[-3:].numel() == d,
            f"Zca: expected images [..., C, H, W], C·H·W = {d}",
        )
        key = (images.dtype, images.device)
        if key not in self._cast:
            self._cast[key] = tuple(x.to(images) for x in self.state().values())
        return self._cast[key]


KINDS: dict[str, type[Transform]] = {cls.kind: cls for cls in (Standardise, Zca, Identity)}


def fit(kind: str, images: Tensor) -> Transform:
    """Fit a transform on training images.

    Sums run in float64 over chunks of the images, in two passes, so the result does not depend on
    how many images there are.

    Args:
        kind: ``"standard"``, ``"zca"`` or ``"none"``.
        images: Pixel space, ``[N, C, H, W]``, float32 or float64, finite.

    Returns:
        ``Standardise`` in float64 (a channel whose std is below 1e-4 is constant: it is shifted,
        not scaled), ``Zca`` with eps = 0.1 computed in float64 and kept in float32, or
        ``Identity``.

    Raises:
        ConfigError: Unknown kind.
        ShapeError: Not ``[N, C, H, W]``, or no image.
        DataError: ZCA of fewer than two images.

    Cost: two passes over the images; ZCA ``2·N·D²`` flops in float64 and one symmetric eigenproblem
        of size D.

    References:
        ZCA on pixels in [0, 1] with the n - 1 divisor and eps 0.1: Cazenavette et al., "Dataset
        Distillation by Matching Training Trajectories", CVPR 2022.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"normalisation: expected a kind of transform, got '{kind}'; "
            f"{did_you_mean(kind, list(KINDS))}"
        )
    if images.ndim != 4 or images.numel() == 0:
        raise ShapeError(
            f"fit: expected images [N, C, H, W] with at least one image, got {list(images.shape)}; "
            "add images"
        )
    if kind == "none":
        return Identity()
    return _fit_standard(images) if kind == "standard" else _fit_zca(images)


def from_state(kind: str, state: Mapping[str, Tensor]) -> Transform:
    """Rebuild a transform from its ``kind`` and ``state()``.

    Raises:
        ConfigError: Unknown kind.
        DataError: A tensor is missing, or one too many is there.
        ShapeError: The tensors do not fit together.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"transform: expected a kind of transform, got '{kind}'; "
            f"{did_you_mean(kind, list(KINDS))}"
        )
    wanted = {"standard": ("mean", "std"), "zca": ("mean", "matrix", "inverse"), "none": ()}[kind]
    if set(state) != set(wanted):
        raise DataError(
            f"transform: expected the tensors {list(wanted)} of '{kind}', got {sorted(state)}; the "
            "record is damaged"
        )
    return KINDS[kind](**{name: state[name] for name in wanted})


def _fit_standard(images: Tensor) -> Standardise:
    count = images.numel() / images.shape[1]
    mean = sum(chunk.double().sum((0, 2, 3)) for chunk in images.split(CHUNK)) / count
    centre = mean.view(-1, 1, 1)
    variance = (
        sum((chunk.double() - centre).square().sum((0, 2, 3)) for chunk in images.split(CHUNK))
        / count
    )
    std = variance.sqrt()
    return Standardise(mean, torch.where(std < CONSTANT_STD, torch.ones_like(std), std))


def _fit_zca(images: Tensor) -> Zca:
    n = len(images)
    if n < 2:
        raise DataError(
            f"zca: expected at least 2 images to fit on, got {n}; add images or use "
            "normalisation='standard'"
        )
    mean = sum(chunk.double().flatten(1).sum(0) for chunk in images.split(CHUNK)) / n
    covariance = torch.zeros(
        (images.shape[1:].numel(),) * 2, dtype=torch.float64, device=images.device
    )
    for chunk in images.split(CHUNK):
        centred = chunk.double().flatten(1) - mean
        covariance.addmm_(centred.T, centred)
    spectrum, vectors = torch.linalg.eigh(covariance / (n - 1))
    scale = (
        spectrum.clamp(min=0.0) + ZCA_EPS
    ).sqrt()  # rounding makes a zero of the spectrum slightly negative
    matrix, inverse = (vectors / scale) @ vectors.T, (vectors * scale) @ vectors.T
    return Zca(mean.float(), matrix.float(), inverse.float())


def _check_images(images: Tensor, fits: bool, expected: str) -> None:
    if not fits or not images.is_floating_point():
        raise ShapeError(
            f"{expected}, float, got {list(images.shape)}, {images.dtype}; use the transform "
            "fitted on such images"
        )


def _check_finite(where: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise DataError(
                f"{where}: expected finite numbers in {name}, got NaN or infinity; the record is "
                "damaged"
            )
