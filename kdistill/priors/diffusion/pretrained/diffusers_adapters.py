"""Networks of diffusers as the denoiser and the autoencoder of a diffusion model.

Papers: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022;
    Peebles and Xie, "Scalable Diffusion Models with Transformers" (DiT), ICCV 2023.

Symbols: B rows of a batch, c latent channels, s their side, K classes, D numbers of a class vector.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.errors import DataError
from kdistill.priors.diffusion.denoiser import Prediction


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Vectors of the classes.

    Attributes:
        weight: ``[K, D]``, or ``[K + 1, D]`` with a row of no class.
        null: Row of no class; None if the network was trained without one.
    """

    weight: Tensor
    null: int | None

    @property
    def classes(self) -> int:
        """K."""
        return len(self.weight) - (self.null is not None)


@dataclass(frozen=True, eq=False)
class CrossAttentionDenoiser:
    """A ``UNet2DConditionModel`` whose only context token is the vector of the class.

    Attributes:
        unet: The network, frozen.
        table: Vectors of the classes.
        prediction: What the network predicts.
    """

    unet: nn.Module
    table: ClassTable
    prediction: Prediction

    def condition(self, classes: Tensor) -> Tensor:
        """Return the context ``[B, 1, D]`` of these classes."""
        return self.table.weight[classes][:, None]

    def null_condition(self) -> Tensor | None:
        """Return the context ``[1, 1, D]`` of no class, or None."""
        return None if self.table.null is None else self.table.weight[self.table.null][None, None]

    def predict(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction ``[B, c, s, s]``."""
        return self.unet(x, timesteps, encoder_hidden_states=condition, return_dict=False)[0]


@dataclass(frozen=True, eq=False)
class TransformerDenoiser:
    """A ``DiTTransformer2DModel`` that takes vectors in the place of class numbers.

    Attributes:
        transformer: The network after ``take_class_table``, frozen.
        table: Vectors of the classes.
        prediction: What the network predicts.
    """

    transformer: nn.Module
    table: ClassTable
    prediction: Prediction

    def condition(self, classes: Tensor) -> Tensor:
        """Return the vectors ``[B, D]`` of these classes."""
        return self.table.weight[classes]

    def null_condition(self) -> Tensor | None:
        """Return the vector ``[1, D]`` of no class, or None."""
        return None if self.table.null is None else self.table.weight[self.table.null][None]

    def predict(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction ``[B, c, s, s]``; a learned variance is left out."""
        output = self.transformer(x, timesteps, class_labels=condition, return_dict=False)[0]
        return output[:, : x.shape[1]]


def take_class_table(transformer: nn.Module, where: object) -> ClassTable:
    """Take the table of the classes out of a DiT, whose blocks then receive vectors.

    The published network has one table; diffusers has a copy of it in every block.  Each gives way
    to one shared identity, so that ``class_labels`` are vectors ``[B, D]``.  Equal copies of the
    embedding of the timestep become one too.

    Raises:
        DataError: The copies differ, so no single vector stands for a class.
    """
    blocks: list[Any] = list(transformer.transformer_blocks)  # type: ignore[arg-type]
    embedders = [block.norm1.emb.class_embedder for block in blocks]
    weight = embedders[0].embedding_table.weight
    for i, embedder in enumerate(embedders):
        if not weight.is_meta and not torch.equal(embedder.embedding_table.weight, weight):
            raise DataError(
                f"{where}: expected one table of classes in all blocks, got another one in block "
                f"{i}; a network that was fine-tuned with a table per block is not supported"
            )
    vectors = nn.Identity()
    shared = blocks[0].norm1.emb
    for block in blocks:
        block.norm1.emb.class_embedder = vectors
        if weight.is_meta or _are_equal(block.norm1.emb, shared):
            block.norm1.emb = shared
    classes = embedders[0].num_classes
    return ClassTable(weight, classes if len(weight) > classes else None)


def _are_equal(module: nn.Module, other: nn.Module) -> bool:
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)
