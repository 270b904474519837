"""What StyleGAN2 and StyleGAN3 share: the mapping, and a synthesis that can be split at any layer.

Symbols: N images, L synthesis layers, ws ``[N, num_ws, w_dim]`` the latents of W+, f_n the state
    after n layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.errors import ConfigError, ShapeError
from kdistill.keys import make_key
from kdistill.priors.base import Noise
from kdistill.priors.stylegan.operators import equalized_linear, normalise, scaled_lrelu

# learning rate multiplier of the mapping's hidden layers: part of their equation
MAPPING_LR = 0.01
CHUNK = 100  # images sampled at a time
# what training changes in a module of the synthesis; ToRGB and StyleGAN3 have no noise
PARAMETERS = ("weight", "bias", "affine.weight", "affine.bias", "noise_strength")


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """Configuration of the mapping network, from z and class to w.

    Attributes:
        z_dim: Length of z.
        w_dim: Length of w.
        classes: Number of classes; 0 is an unconditional network.
        num_layers: Number of hidden layers.
        embedding: How the class is embedded: ``"none"``, ``"linear"`` (StyleGAN2 and 3) or
            ``"table"`` (StyleGAN-XL).
    """

    z_dim: int
    w_dim: int
    classes: int
    num_layers: int
    embedding: Literal["none", "linear", "table"]


@dataclass(frozen=True, eq=False)
class Generator(ABC):
    """A class-conditional generator: a configuration and named tensors.

    Attributes:
        config: ``StyleGAN2Config`` or ``StyleGAN3Config``.
        tensors: Parameters and buffers, by the names that the original network files use.
    """

    config: Any
    tensors: Mapping[str, Tensor]

    @property
    @abstractmethod
    def layer_names(self) -> tuple[str, ...]:
        """Names of the L synthesis layers, in order."""

    @abstractmethod
    def synthesis_input(self, ws: Tensor) -> Tensor:
        """Return f_0, the input of the first layer."""

    @abstractmethod
    def apply_layer(self, f: Tensor, ws: Tensor, position: int, noise: Noise | None) -> Tensor:
        """Return f_{position+1} from f_position."""

    @abstractmethod
    def to_image(self, f: Tensor) -> Tensor:
        """Return the images from f_L."""

    def layer_modules(self, name: str) -> tuple[str, ...]:
        """Return the names of the modules that make up a layer."""
        return (name,)

    @property
    def num_layers(self) -> int:
        """Number of synthesis layers, L."""
        return len(self.layer_names)

    @property
    def num_ws(self) -> int:
        """Latents per image: one more than layers."""
        return self.num_layers + 1

    @property
    def size(self) -> int:
        """Side of the images."""
        return int(self.config.size)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self.config.channels)

    @property
    def classes(self) -> int:
        """Number of classes; 0 for an unconditional generator."""
        return int(self.config.mapping.classes)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return the generator on another device, or in another precision."""
        return self.with_tensors(
            {name: x.to(device=device, dtype=dtype) for name, x in self.tensors.items()}
        )

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return the generator with some of its tensors replaced (they may require a gradient)."""
        return replace(self, tensors={**self.tensors, **tensors})

    def parameters(self, n: int) -> dict[str, Tensor]:
        """Return the tensors that training changes in the layers after the first n."""
        self.check_layer(n)
        modules = [part for name in self.layer_names[n:] for part in self.layer_modules(name)]
        names = [f"synthesis.{module}.{part}" for module in modules for part in PARAMETERS]
        return {name: self.tensors[name] for name in names if name in self.tensors}

    def mapping(self, z: Tensor, labels: Tensor | None = None, *, psi: float = 1.0) -> Tensor:
        """Return the latents ``ws [N, num_ws, w_dim]``, the same w for every layer.

        Args:
            z: ``[N, z_dim]``, standard normal.
            labels: The generator's classes, int64 ``[N]``; an unconditional generator needs none.
            psi: Truncation: ``w_avg + psi * (w - w_avg)``; 1 leaves w.

        Raises:
            ShapeError: z has another shape, or a class is missing or out of range.
        """
        config: MappingConfig = self.config.mapping
        if z.ndim != 2 or z.shape[1] != config.z_dim:
            raise ShapeError(
                f"mapping: expected z [N, {config.z_dim}], got {list(z.shape)}; draw it anew"
            )
        w = normalise(z)
        if config.embedding != "none":
            embedded = self._embedding(self._checked_labels(labels, len(z)))
            w = torch.cat([w, normalise(embedded)], 1)
        for i in range(config.num_layers):
            w = scaled_lrelu(equalized_linear(self.tensors, f"mapping.fc{i}", w, MAPPING_LR))
        if psi != 1.0:
            w_avg = self.tensors["mapping.w_avg"]
            w = (w_avg[labels] if w_avg.ndim == 2 else w_avg).lerp(w, psi)
        return w[:, None, :].expand(-1, self.num_ws, -1).contiguous()

    def to_f(self, ws: Tensor, n: int, noise: Noise | None = None) -> Tensor:
        """Return f_n, the state after the first n layers (0 to L).

        Args:
            ws: ``[N, num_ws, w_dim]``.
            n: Layers to apply.
            noise: Random noise inputs of StyleGAN2; None takes the network's own constants.
        """
        self._check_ws(ws)
        self.check_layer(n)
        return self._apply_layers(self.synthesis_input(ws), ws, range(n), noise)

    def from_f(self, f: Tensor, ws: Tensor, n: int, noise: Noise | None = None) -> Tensor:
        """Return the images ``[N, C, H, W]``, about -1 to 1, by the layers after the first n."""
        self._check_ws(ws)
        self.check_layer(n)
        return self.to_image(self._apply_layers(f, ws, range(n, self.num_layers), noise))

    def advance(self, f: Tensor, ws: Tensor, n: int, noise: Noise | None = None) -> Tensor:
        """Return f_{n+1} from f_n."""
        self._check_ws(ws)
        if n == self.num_layers:
            raise ConfigError(
                f"advance: expected a layer below {n}, the last one, got {n}; "
                f"{self.layer_listing()}"
            )
        self.check_layer(n)
        return self.apply_layer(f, ws, n, noise)

    def forward(self, ws: Tensor, noise: Noise | None = None) -> Tensor:
        """Return the images of ``ws``: ``from_f(to_f(ws, n), ws, n)`` for every n."""
        return self.from_f(self.to_f(ws, 0), ws, 0, noise)

    @torch.no_grad()
    def sample(self, labels: Tensor, key: int, *, has_noise: bool = True) -> Tensor:
        """Return one image per label, ``[M, C, S, S]``; as ``ImageGenerator.sample``.

        Args:
            labels: The generator's classes, int64 ``[M]``.
            key: Key of the draws.
            has_noise: Whether every image has noise inputs of its own; False takes the network's
                constants.
        """
        like = next(iter(self.tensors.values()))
        images = [like.new_empty(0, self.channels, self.size, self.size)]
        for start in range(0, len(labels), CHUNK):
            rows = range(start, min(start + CHUNK, len(labels)))
            z = Noise(key, rows).normal("z", (self.config.mapping.z_dim,), like)
            noise = Noise(make_key(key, "noise"), rows) if has_noise else None
            ws = self.mapping(z, labels[rows.start : rows.stop].to(like.device))
            images.append(0.5 * (self.forward(ws, noise) + 1.0))
        return torch.cat(images)

    def check_layer(self, n: int) -> None:
        """Raise ConfigError unless n is 0 to L; the message lists the layers."""
        if not 0 <= n <= self.num_layers:
            raise ConfigError(
                f"layer: expected 0 to {self.num_layers}, the number of layers already applied, "
                f"got {n}; {self.layer_listing()}"
            )

    def layer_listing(self) -> str:
        """Return the layers with their numbers, for messages."""
        return "layers: " + ", ".join(
            f"{n} {name}" for n, name in enumerate(("input", *self.layer_names))
        )

    def _apply_layers(self, f: Tensor, ws: Tensor, layers: range, noise: Noise | None) -> Tensor:
        for position in layers:
            f = self.apply_layer(f, ws, position, noise)
        return f

    def _embedding(self, labels: Tensor) -> Tensor:
        weight = self.tensors["mapping.embed.weight"]
        if self.config.mapping.embedding == "table":
            return scaled_lrelu(
                equalized_linear(self.tensors, "mapping.embed_proj", weight[labels])
            )
        one_hot = F.one_hot(labels, self.classes).to(weight)
        return equalized_linear(self.tensors, "mapping.embed", one_hot)

    def _checked_labels(self, labels: Tensor | None, count: int) -> Tensor:
        if labels is None or labels.shape != (count,):
            got = "none" if labels is None else str(list(labels.shape))
            raise ShapeError(
                f"mapping: expected one class per z, int64 [{count}], got {got}; the generator is "
                "conditional"
            )
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ShapeError(
                f"mapping: expected classes 0 to {self.classes - 1}, got {int(labels.min())} to "
                f"{int(labels.max())}; number them as the generator was trained"
            )
        return labels

    def _check_ws(self, ws: Tensor) -> None:
        num_ws, w_dim = self.num_ws, self.config.mapping.w_dim
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (num_ws, w_dim):
            raise ShapeError(
                f"ws: expected [N, {num_ws}, {w_dim}], got {list(ws.shape)}; use mapping(z, labels)"
            )
