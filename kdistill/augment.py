"""DSA: differentiable augmentation as a pure function of a key.

Symbols: B images (or any leading dimensions, such as G groups of B), C channels, H x W pixels, S
    parameter sets, N images that share a draw of the family.

The draws are the published ones (docs/ops/diff_augment.md).  The published code seeds the global
generator with the clock; this module never touches it: the same key, step and group give the same
transformation in every process, for any batch.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kdistill.errors import ConfigError, ShapeError, did_you_mean
from kdistill.keys import make_key, uniforms
from kdistill.ops import diff_augment
from kdistill.ops.diff_augment import AFFINE, COLOR, CROP, CUTOUT, FLIP, ROW, diff_augment_transpose

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")

Parameters = list[
    tuple[Tensor, Tensor]
]  # one (params [S, 8], index [B]) per call of diff_augment, in order

_DRAWS = 3  # uniforms behind one row: the most that a family needs


@dataclass(frozen=True, kw_only=True)
class AugmentConstants:
    """The published constants of DSA.

    Attributes:
        brightness: Width of the additive offset, U(-brightness/2, brightness/2).
        saturation: Largest factor of the distance to the mean over channels, U(0, saturation).
        contrast: Smallest factor of the distance to the mean over the image, U(contrast, contrast +
            1).
        crop: Largest shift as a fraction of the side.
        cutout: Side of the square set to zero as a fraction of the side of the image.
        flip: Probability of mirroring.
        scale: Largest factor of either axis of the sampling grid, U(1/scale, scale); above 1
            shrinks the content.
        rotate: Largest angle in degrees, U(-rotate, rotate).

    Raises:
        ConfigError: A constant lies outside its range.
    """

    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0

    def __post_init__(self) -> None:
        ranges = {
            "crop": (0.0, 1.0),
            "cutout": (0.0, 1.0),
            "flip": (0.0, 1.0),
            "scale": (1.0, math.inf),
        }
        for field in fields(self):
            low, high = ranges.get(field.name, (0.0, math.inf))
            value = getattr(self, field.name)
            if not (low <= value <= high and math.isfinite(value)):
                raise ConfigError(
                    f"AugmentConstants: expected {field.name} in {low:g}..{high:g}, got {value}; "
                    "change it"
                )


def strategy_for(strategy: str, mirrors: bool) -> str:
    """Return the families of ``strategy``; ``"auto"`` is all, with flip only where images mirror.

    Args:
        strategy: Families joined by ``_``, ``"none"`` or ``"auto"``.
        mirrors: Whether the data may be mirrored (``ImageDataset.mirrors``); a mirrored digit is no
            digit.
    """
    if strategy != "auto":
        return strategy
    return "_".join(family for family in FAMILIES if family != "flip" or mirrors)


class Augment:
    """A strategy of differentiable augmentations, drawn from a key.

    Args:
        strategy: Families joined by ``_``, such as ``"color_crop_cutout_flip_scale_rotate"``
            (digits: without flip); ``"none"`` or ``""`` changes nothing.
        mode: ``"S"`` applies one of the families, each with the same probability; ``"M"`` applies
            every one, in that order.
        siamese: True: the images of a group share their parameters (DC, DSA, DM).  False: they
            share the family, and each image has parameters of its own (student training, trajectory
            methods, evaluation).
        key: The stream of draws, from ``kdistill.keys.make_key``.
        align_corners: Grid convention of the affine families: False for DC, DSA and DM, True for
            the trajectory methods.  It makes a difference on images that are not square.
        constants: The ranges of the parameters.

    Raises:
        ConfigError: Unknown family or mode.

    Example:
        >>> augment = Augment("color_crop_flip", siamese=True, key=7, align_corners=False)
        >>> real, synthetic = torch.rand(64, 3, 8, 8), torch.rand(10, 3, 8, 8)
        >>> pair = augment(real, step=3), augment(synthetic, step=3)  # one transformation for both

    References: Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML
        2021.
    """

    def __init__(
        self,
        strategy: str,
        *,
        mode: str = "S",
        siamese: bool,
        key: int,
        align_corners: bool,
        constants: AugmentConstants | None = None,
    ):
        self.strategy = strategy
        self.families = () if strategy in ("", "none") else tuple(strategy.split("_"))
        for family in self.families:
            if family not in FAMILIES:
                raise ConfigError(
                    f"Augment: expected families joined by '_', got '{family}'; "
                    f"{did_you_mean(family, list(FAMILIES))}"
                )
        if mode not in ("S", "M"):
            raise ConfigError(
                "Augment: expected mode 'S' (one family per draw) or 'M' (every family), got "
                f"'{mode}'; choose one"
            )
        self.mode = mode
        self.siamese = bool(siamese)
        self.key = int(key)
        self.align_corners = bool(align_corners)
        self.constants = constants or AugmentConstants()

    def __repr__(self) -> str:
        return (
            f"Augment({self.strategy!r}, mode={self.mode!r}, siamese={self.siamese}, "
            f"key={self.key}, align_corners={self.align_corners}, constants={self.constants})"
        )

    def __call__(self, images: Tensor, step: int = 0, groups: Tensor | None = None) -> Tensor:
        """Augment a batch.

        Args:
            images: ``[B, C, H, W]`` or with more leading dimensions, float32 or float64,
                normalised.
            step: The draw: the same step gives the same transformation.
            groups: int64, one per image (the leading shape of ``images``).  Images of one group
                share a draw (siamese: all of it, else the family), and a group's draw depends on
                nothing but key, step and its number: with class labels as groups, the real and the
                synthetic images of a class are transformed alike.  None: all are group 0.  Groups
                on a GPU are copied to the host; keep them on the CPU to avoid waiting.

        Returns:
            A tensor like ``images``, differentiable twice in ``images``; ``images`` itself where
            there is no family.

        Raises:
            ShapeError: A shape or dtype does not fit.

        Cost: one ``kdistill.ops.diff_augment`` (mode M: one per family) and about 50 us per group
            to draw, once per step where parameters are siamese.
        """
        return self.apply(
            images, self.parameters(step, shape=images.shape, groups=groups, device=images.device)
        )

    def vjp(self, grad_images: Tensor, step: int = 0, groups: Tensor | None = None) -> Tensor:
        """Return dL/dimages of the call with the same step and groups, without running it again.

        Args:
            grad_images: dL/d(augmented images).
            step: The draw.
            groups: As in the call.
        """
        return self.transpose(
            grad_images,
            self.parameters(
                step, shape=grad_images.shape, groups=groups, device=grad_images.device
            ),
        )

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Augment with parameters drawn before; see ``parameters``."""
        flat = images.flatten(0, -4)
        for params, index in parameters:
            flat = diff_augment(flat, params, index, align_corners=self.align_corners)
        return flat.reshape(images.shape)

    def transpose(self, grad_images: Tensor, parameters: Parameters) -> Tensor:
        """Return the vector-Jacobian product with parameters drawn before; see ``parameters``."""
        flat = grad_images.flatten(0, -4)
        for params, index in reversed(parameters):
            flat = diff_augment_transpose(flat, params, index, align_corners=self.align_corners)
        return flat.reshape(grad_images.shape)

    def parameters(
        self,
        step: int = 0,
        *,
        shape: torch.Size | tuple[int, ...],
        groups: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Parameters:
        """Draw without applying, for a forward pass and its vjp, or inside a captured graph.

        Args:
            step: The draw.
            shape: Shape of the images, ``[..., C, H, W]``.
            groups: As in the call.
            device: Where the tensors are wanted.

        Returns:
            One ``(params [S, 8] float64, index [B] int64)`` per call of
            ``kdistill.ops.diff_augment``, in order: one in mode S, one per family in mode M, none
            without families.

        Raises:
            ShapeError: A shape or dtype does not fit.
        """
        if len(shape) < 4:
            raise ShapeError(
                f"Augment: expected images [..., B, C, H, W], got {list(shape)}; add a dimension "
                "with x[None]"
            )
        leading, (h, w) = shape[:-3], shape[-2:]
        if groups is not None and (groups.shape != leading or groups.dtype != torch.int64):
            raise ShapeError(
                f"Augment: expected groups int64 {list(leading)}, got {groups.dtype} "
                f"{list(groups.shape)}; pass one per image"
            )
        count = math.prod(leading)
        numbers = (
            np.zeros(count, dtype=np.int64)
            if groups is None
            else groups.detach().cpu().numpy().reshape(-1)
        )
        drawn, member = np.unique(numbers, return_inverse=True)
        families = (
            range(len(self.families)) if self.mode == "M" else range(min(1, len(self.families)))
        )
        tables = [self._table(step, drawn, member, place, h, w) for place in families]
        return [
            (params.to(device, non_blocking=True), index.to(device, non_blocking=True))
            for params, index in tables
        ]

    def _table(
        self, step: int, drawn: np.ndarray, member: np.ndarray, place: int, h: int, w: int
    ) -> tuple[Tensor, Tensor]:
        """Return params and index of one call: a row per group if siamese, else a row per image."""
        choice = self.families if self.mode == "S" else self.families[place : place + 1]
        if self.siamese:
            rows = [
                _rows(
                    choice,
                    make_key(self.key, "augment", step, int(g), place),
                    1,
                    h,
                    w,
                    self.constants,
                )
                for g in drawn
            ]
            params = np.concatenate(rows) if rows else np.zeros((0, ROW))
            return torch.from_numpy(params), torch.from_numpy(member.astype(np.int64))
        params = np.zeros((len(member), ROW))
        for i, g in enumerate(drawn):
            of_group = np.flatnonzero(member == i)
            key = make_key(self.key, "augment", step, int(g), place)
            params[of_group] = _rows(choice, key, len(of_group), h, w, self.constants)
        return torch.from_numpy(params), torch.arange(len(member))


def _rows(
    families: tuple[str, ...], key: int, n: int, h: int, w: int, constants: AugmentConstants
) -> np.ndarray:
    """Return ``[N, 8]``: one family for all, drawn uniformly, and the parameters of each image.

    Image i has the same parameters for any N.
    """
    if n == 1:
        # drawn again for the synthetic half and for the vjp
        return _one_row(families, key, h, w, constants)
    return _draw(families, key, n, h, w, constants)


@lru_cache(maxsize=4096)
def _one_row(
    families: tuple[str, ...], key: int, h: int, w: int, constants: AugmentConstants
) -> np.ndarray:
    row = _draw(families, key, 1, h, w, constants)
    row.flags.writeable = False
    return row


def _draw(
    families: tuple[str, ...], key: int, n: int, h: int, w: int, constants: AugmentConstants
) -> np.ndarray:
    stream = uniforms(key, 1 + n * _DRAWS)
    family = families[int(stream[0] * len(families))]
    columns = _parameters_of(family, stream[1:].reshape(n, _DRAWS).T, h, w, constants)
    rows = np.zeros((n, ROW))
    for i, column in enumerate(columns):
        rows[:, i] = column
    return rows


def _parameters_of(
    family: str, u: np.ndarray, h: int, w: int, constants: AugmentConstants
) -> list[np.ndarray | float]:
    """Return the columns of rows of ``family`` from uniforms ``[3, N]``."""
    if family == "color":
        return [
            COLOR,
            (u[0] - 0.5) * constants.brightness,
            u[1] * constants.saturation,
            u[2] + constants.contrast,
        ]
    if family == "crop":
        most_h, most_w = (math.floor(constants.crop * size + 0.5) for size in (h, w))
        return [
            CROP,
            np.floor(u[0] * (2 * most_h + 1)) - most_h,
            np.floor(u[1] * (2 * most_w + 1)) - most_w,
        ]
    if family == "cutout":
        side_h, side_w = (math.floor(constants.cutout * size + 0.5) for size in (h, w))
        return [
            CUTOUT,
            np.floor(u[0] * (h + 1 - side_h % 2)),
            np.floor(u[1] * (w + 1 - side_w % 2)),
            side_h,
            side_w,
        ]
    if family == "flip":
        return [FLIP, (u[0] < constants.flip).astype(np.float64)]
    if family == "scale":
        low = 1.0 / constants.scale
        return [
            AFFINE,
            low + u[0] * (constants.scale - low),
            0.0,
            0.0,
            low + u[1] * (constants.scale - low),
        ]
    angle = (2.0 * u[0] - 1.0) * math.radians(constants.rotate)
    return [AFFINE, np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
