"""Images as latents of a generator: W+, or a feature map F_n and the latents of later layers.

Paper: Cazenavette et al., "Generalizing Dataset Distillation via Deep Generative Prior" (GLaD),
    CVPR 2023.

Symbols: M images, L synthesis layers, n layers that ``f`` stands for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.errors import ConfigError, DataError
from kdistill.keys import generator, make_key
from kdistill.priors.base import ImageGenerator, Noise, RenderedPrior, State
from kdistill.priors.stylegan import Generator
from kdistill.transforms import Identity, Transform

WEIGHTS = "generator."  # tensors of the state that are the generator's own
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


@dataclass(frozen=True)
class GeneratorAdapter:
    """From a generator's images (about -1 to 1) to normalised ones of the data's colours and size.

    Attributes:
        transform: From pixel space to normalised images.
        channels: Channels of the data; grey and colour are converted.
        size: Side of the data's images; larger or smaller ones are resized.
    """

    transform: Transform = field(default_factory=Identity)
    channels: int | None = None
    size: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return normalised images ``[M, C, S, S]``; differentiable, nothing is clipped."""
        x = 0.5 * (images + 1.0)
        if self.channels == 1 and x.shape[1] == 3:
            x = (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
        elif self.channels == 3 and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.size is not None and self.size != x.shape[-1]:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.transform.apply(x)


@dataclass(frozen=True, eq=False)
class LatentPrior(RenderedPrior):
    """The images ``adapter(from_f(f, ws, layer))`` of a generator, frozen or learned too.

    The state holds ``ws [M, num_ws, w_dim]``, for F_n also ``f [M, ...]``, and with learned weights
    a ``generator.<name>`` for each.  Latents of layers that ``f`` stands for have no influence, and
    a gradient of zero.

    Attributes:
        generator: The generator.
        layer: n of F_n, 0 to L; None optimises W+ alone.
        adapter: From its images to normalised ones.
        chunk: Images that have a graph at one time.
        key: Key of the draws.
        noise: StyleGAN2's noise inputs: ``"const"`` (the network's own) or ``"random"`` (keyed, new
            in every iteration).

    Raises:
        ConfigError: The layer does not exist (lists those that do).
    """

    generator: Generator
    layer: int | None
    adapter: GeneratorAdapter
    chunk: int
    key: int
    noise: Literal["const", "random"] = "const"

    def __post_init__(self) -> None:
        if self.layer is not None:
            self.generator.check_layer(self.layer)

    def init(
        self,
        classes: Tensor,
        *,
        average: int = 0,
        random_f: bool = False,
        learn_weights: bool = False,
    ) -> State:
        """Return the first state.

        Args:
            classes: The generator's class of every image, int64 ``[M]``.
            average: Mapped z that are averaged per class, each image of a class over its own share
                of them; 0 takes one each.
            random_f: Replace f by normal draws of the same mean and deviation per image.
            learn_weights: Put the weights of the layers after n into the state.

        Raises:
            DataError: The generator gives latents that are not finite.
        """
        with torch.no_grad():
            rows = range(len(classes))
            ws = torch.cat([self._mapped(row, classes, average) for row in rows])
            state = {"ws": ws}
            if self.layer is not None:
                chunks = [slice(i, i + self.chunk) for i in rows[:: self.chunk]]
                state["f"] = torch.cat([self._features(ws, chunk, random_f) for chunk in chunks])
        if not bool(torch.isfinite(ws).all()):
            raise DataError(
                "prior: expected finite latents, got some that are not; the generator is damaged, "
                "convert it again"
            )
        if learn_weights:
            state |= {
                WEIGHTS + name: x.clone()
                for name, x in self.generator.parameters(self.layer or 0).items()
            }
        return state

    def is_per_image(self, name: str) -> bool | None:
        """Say that ``ws`` and ``f`` have a row per image, and weights belong to all images."""
        return True if name in ("ws", "f") else False if name.startswith(WEIGHTS) else None

    def draw(self, state: State, noise: Noise) -> Tensor:
        """Return the normalised images of a chunk; differentiable."""
        weights = {
            name.removeprefix(WEIGHTS): x for name, x in state.items() if name.startswith(WEIGHTS)
        }
        network = self.generator.with_tensors(weights) if weights else self.generator
        inputs = noise if self.noise == "random" else None
        if self.layer is None:
            return self.adapter(network.forward(state["ws"], inputs))
        return self.adapter(network.from_f(state["f"], state["ws"], self.layer, inputs))

    def _mapped(self, row: int, classes: Tensor, average: int) -> Tensor:
        """Return ``[1, num_ws, w_dim]`` for an image; draws depend on key and number alone."""
        sharing = int((classes == classes[row]).sum())
        count = max(average // sharing, 1)
        like = next(iter(self.generator.tensors.values()))
        z = torch.randn(
            count,
            self.generator.config.mapping.z_dim,
            generator=generator(make_key(self.key, "z", row)),
        ).to(like)
        labels = classes[row].expand(count).to(like.device) if self.generator.classes else None
        return self.generator.mapping(z, labels).mean(0, keepdim=True)

    def _features(self, ws: Tensor, rows: slice, random_f: bool) -> Tensor:
        assert self.layer is not None
        f = clean(self.generator.to_f(ws[rows], self.layer))
        if not random_f:
            return f.clone()  # f_0 of StyleGAN2 is one constant for all
        noise = Noise(make_key(self.key, "f"), range(rows.start, rows.start + len(f)))
        mean, std = f.mean((1, 2, 3), keepdim=True), f.std((1, 2, 3), keepdim=True)
        return mean + std * noise.normal("f", tuple(f.shape[1:]), f)


def clean(f: Tensor) -> Tensor:
    """Return feature maps to begin with, made finite and within ±10 as in the published code."""
    return torch.nan_to_num(f, nan=0.0, posinf=5.0, neginf=-5.0).clamp(-10.0, 10.0)


def check_fit(
    network: ImageGenerator,
    *,
    classes: Sequence[str],
    channels: int,
    size: int,
    mapped: bool,
    convert: bool,
    resize: bool,
) -> None:
    """Refuse a generator whose classes, channels or size are not the data's, unless mapped.

    Args:
        network: The generator.
        classes: Names of the data's classes.
        channels: Channels of the data.
        size: Side of the data's images.
        mapped: Whether it was said which of its classes are the data's.
        convert: Whether colours may be converted.
        resize: Whether images may be resized.

    Raises:
        ConfigError: Names what does not fit, and the option that maps it.
    """
    count = len(classes)
    if network.classes not in (0, count) and not mapped:
        raise ConfigError(
            f"prior: expected a generator of the data's {count} classes, got one of "
            f"{network.classes}; say which of its classes are {_few(classes)} with classes=[...], "
            f"{count} numbers from 0 to {network.classes - 1}"
        )
    if network.channels != channels and not convert:
        raise ConfigError(
            f"prior: expected a generator of the data's {channels} channels, got one of "
            f"{network.channels}; set channels='convert' to turn colour into grey or grey into "
            "colour"
        )
    if network.size != size and not resize:
        raise ConfigError(
            f"prior: expected a generator of the data's size {size}x{size}, got one of "
            f"{network.size}x{network.size}; load the data with size={network.size}, or set "
            "resize=true to scale what it draws"
        )


def generator_classes(
    network: ImageGenerator, labels: Tensor, classes: Sequence[int] | None, num_classes: int
) -> Tensor:
    """Return the generator's class of every image; without ``classes`` its label.

    Raises:
        ConfigError: The mapping has another length, or names a class that the generator does not
            have.
    """
    if classes is None:
        return labels
    outside = [k for k in classes if not 0 <= k < max(network.classes, 1)]
    if len(classes) != num_classes or outside:
        wrong = f"{outside[0]}" if outside else f"{len(classes)} numbers"
        raise ConfigError(
            f"classes: expected {num_classes} numbers from 0 to {max(network.classes, 1) - 1}, one "
            f"for each class of the data, got {wrong}; give the generator's class for every one"
        )
    return torch.tensor(list(classes), device=labels.device)[labels]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])}, ... and {names[-1]}"
