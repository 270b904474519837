"""Distribution matching as published: a loop over classes, eager augmentation, autograd.

Written from the description in Zhao and Bilen, Dataset Condensation with Distribution Matching
(WACV 2023), and Dataset Condensation with Differentiable Siamese Augmentation (ICML 2021).
``batched_gradient`` is the same function with all classes in one batch, which the published code
does not do."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
Transformation = tuple[
    str, list[float]
]  # a family and its parameters, the same for every image of a class


class ConvNet(nn.Module):
    """The field's student.

    Three times 3x3 convolution, instance norm, ReLU, 2x2 average pooling; then a classifier.
    """

    def __init__(
        self, channels: int = 3, size: int = 32, classes: int = 10, width: int = 128, depth: int = 3
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(width if block else channels, width, 3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(),
            ]
            layers.append(nn.AvgPool2d(2))
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (size >> depth) ** 2, classes)

    def embed(self, images: Tensor) -> Tensor:
        return self.blocks(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


def draw_transformation(size: int, generator: torch.Generator) -> Transformation:
    """Draw one family and its parameters, with the published constants."""
    u = torch.rand(4, generator=generator).tolist()
    family = FAMILIES[int(u[0] * len(FAMILIES))]
    if family == "color":
        return family, [u[1] - 0.5, 2 * u[2], u[3] + 0.5]
    if family == "crop":
        most = math.floor(0.125 * size + 0.5)
        return family, [math.floor(v * (2 * most + 1)) - most for v in u[1:3]]
    if family == "cutout":
        side = math.floor(0.5 * size + 0.5)
        return family, [
            math.floor(u[1] * (size + 1 - side % 2)),
            math.floor(u[2] * (size + 1 - side % 2)),
            side,
            side,
        ]
    if family == "flip":
        return family, [float(u[1] < 0.5)]
    if family == "scale":
        return "affine", [
            1 / 1.2 + v * (1.2 - 1 / 1.2) if v else 0.0 for v in (u[1], 0.0, 0.0, u[2])
        ]
    angle = (2 * u[1] - 1) * math.radians(15)
    return "affine", [math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)]


def transform(x: Tensor, transformation: Transformation) -> Tensor:
    """Apply one transformation to a whole batch (siamese), differentiably."""
    family, p = transformation
    n, _, h, w = x.shape
    if family == "color":
        x = x + p[0]
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * p[1] + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * p[2] + mean
    if family == "flip":
        return x.flip(3) if p[0] else x
    if family == "affine":
        theta = torch.tensor(
            [[p[0], p[1], 0.0], [p[2], p[3], 0.0]], dtype=x.dtype, device=x.device
        ).expand(n, 2, 3)
        return F.grid_sample(
            x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False
        )
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    if family == "crop":
        padded = F.pad(x, [1, 1, 1, 1])
        i, j = (rows + int(p[0]) + 1).clamp(0, h + 1), (columns + int(p[1]) + 1).clamp(0, w + 1)
        return padded[:, :, i[:, None], j[None, :]]
    centre_h, centre_w, side_h, side_w = (int(v) for v in p)
    cut_rows = (rows >= centre_h - side_h // 2) & (rows < centre_h - side_h // 2 + side_h)
    cut_columns = (columns >= centre_w - side_w // 2) & (columns < centre_w - side_w // 2 + side_w)
    return x * (~(cut_rows[:, None] & cut_columns[None, :])).to(x.dtype)


def per_class_gradient(
    net: ConvNet, real: Tensor, images: Tensor, drawn: list[Transformation] | None
) -> tuple[Tensor, Tensor]:
    """Return loss and image gradient, one class after the other.

    Args:
        net: The embedding network; its parameters do not require grad.
        real: ``[K, N, C, H, W]``, the real images of each class.
        images: ``[K, M, C, H, W]``, the synthetic ones.
        drawn: A transformation per class, or None.
    """
    images = images.detach().requires_grad_()
    loss = images.new_zeros(())
    for c in range(len(real)):
        of_real, of_syn = real[c], images[c]
        if drawn is not None:
            of_real, of_syn = transform(of_real, drawn[c]), transform(of_syn, drawn[c])
        real_features, syn_features = net.embed(of_real).detach(), net.embed(of_syn)
        loss = loss + (real_features.mean(0) - syn_features.mean(0)).square().sum()
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def batched_gradient(
    net: ConvNet, real: Tensor, images: Tensor, drawn: list[Transformation] | None
) -> tuple[Tensor, Tensor]:
    """Return ``per_class_gradient`` from one pass over real and one over synthetic images."""
    images = images.detach().requires_grad_()
    with torch.no_grad():
        real_means = _class_means(net, real, drawn)
    loss = (real_means - _class_means(net, images, drawn)).square().sum()
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def _class_means(net: ConvNet, images: Tensor, drawn: list[Transformation] | None) -> Tensor:
    if drawn is not None:
        images = torch.stack(
            [transform(of_class, t) for of_class, t in zip(images, drawn, strict=True)]
        )
    return net.embed(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)


Gradient = Callable[[ConvNet, Tensor, Tensor, list[Transformation] | None], tuple[Tensor, Tensor]]


class Iteration:
    """Iterations of a new network, new transformations, the gradient, a step on the images."""

    def __init__(self, gradient: Gradient, real: Tensor, images: Tensor, *, width: int):
        self.gradient, self.real, self.width = gradient, real, width
        self.images = images.clone()
        self.optimiser = torch.optim.SGD([self.images], lr=1.0, momentum=0.5)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> Tensor:
        k, _, channels, size, _ = self.real.shape
        net = ConvNet(channels, size, k, self.width).to(self.real).requires_grad_(False)
        drawn = [draw_transformation(size, self.generator) for _ in range(k)]
        loss, self.images.grad = self.gradient(net, self.real, self.images, drawn)
        self.optimiser.step()
        return loss
