"""Images as latents at a depth that changes: W+, then F_1 to F_L with W+, then the pixels.

The names of the tensors say where a state stands: ``ws`` alone is W+, with ``f.<n>`` it is F_n,
``images`` are pixels.  Paper: Zhong et al., "Hierarchical Features Matter" (H-GLaD), CVPR 2025.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.priors.base import Noise, State
from kdistill.priors.latents import GeneratorAdapter, LatentPrior, clean
from kdistill.priors.stylegan import Generator

PIXELS = "pixels"
Depth = int | str | None  # None: W+; n: F_n; "pixels"


@dataclass(frozen=True, eq=False)
class HierarchicalPrior:
    """The images of a frozen generator at any depth, and the way one or more layers down.

    Attributes:
        generator: The generator.
        adapter: From its images to normalised ones; pixels are normalised already.
        chunk: Images that have a graph at one time.
        key: Key of the draws.
        noise: StyleGAN2's noise inputs, as in ``LatentPrior``.
    """

    generator: Generator
    adapter: GeneratorAdapter
    chunk: int
    key: int
    noise: Literal["const", "random"] = "const"

    def init(self, classes: Tensor, *, average: int = 0) -> State:
        """Return the first state, in W+; arguments as for ``LatentPrior.init``."""
        return self._latents(None).init(classes, average=average)

    def depth(self, state: State) -> Depth:
        """Return where ``state`` stands."""
        if "images" in state:
            return PIXELS
        return next((int(name.removeprefix("f.")) for name in state if name.startswith("f.")), None)

    def render(self, state: State, iteration: int) -> Tensor:
        """Return the normalised images ``[M, C, H, W]``; no graph."""
        if "images" in state:
            return state["images"]
        prior, latents = self._at(state)
        return prior.render(latents, iteration)

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient in the prior's tensors, given dL/dimages of the same rendering."""
        if "images" in state:
            return {"images": grad_images}
        prior, latents = self._at(state)
        grads = prior.vjp(latents, grad_images, iteration)
        return {f"f.{prior.layer}" if name == "f" else name: grad for name, grad in grads.items()}

    def descend(self, state: State, depth: Depth, iteration: int) -> State:
        """Return ``state`` at a ``depth`` below; the images stay the same but for rounding.

        Feature maps are cleaned as at the start of GLaD (not-a-number to 0, infinities to ±5, then
        within ±10), as the published code does at every layer.  Pixels are the rendered images, and
        need no W+ any more.  Tensors that are not the prior's stay.

        Raises:
            ConfigError: ``depth`` is not below.

        Cost: the layers in between, in chunks and without a graph; for pixels one rendering.
        """
        start = self.depth(state)
        if depth is None or start == PIXELS or (isinstance(depth, int) and depth <= (start or 0)):
            raise ConfigError(
                f"descend: expected a stage below {start or 'W+'}, got {depth or 'W+'}; stages "
                "only go down"
            )
        others = {name: x for name, x in state.items() if name not in ("ws", f"f.{start}")}
        if isinstance(depth, str):
            return {"images": self.render(state, iteration).clone(), **others}
        with torch.no_grad():
            parts = [
                self._features(part, start or 0, depth, noise)
                for part, noise in self._chunks(state, iteration)
            ]
        return {"ws": state["ws"].clone(), f"f.{depth}": torch.cat(parts), **others}

    def _features(self, part: State, start: int, stop: int, noise: Noise | None) -> Tensor:
        f = part["f"] if "f" in part else self.generator.synthesis_input(part["ws"])
        for n in range(start, stop):
            f = self.generator.advance(f, part["ws"], n, noise)
        return clean(f)

    def _chunks(self, state: State, iteration: int) -> Iterator[tuple[State, Noise | None]]:
        prior, latents = self._at(state)
        for part, noise in prior.parts(latents, iteration):
            yield part, noise if self.noise == "random" else None

    def _at(self, state: State) -> tuple[LatentPrior, State]:
        layer = self.depth(state)
        assert not isinstance(layer, str)
        latents = (
            {"ws": state["ws"]} if layer is None else {"ws": state["ws"], "f": state[f"f.{layer}"]}
        )
        return self._latents(layer), latents

    def _latents(self, layer: int | None) -> LatentPrior:
        return LatentPrior(self.generator, layer, self.adapter, self.chunk, self.key, self.noise)
