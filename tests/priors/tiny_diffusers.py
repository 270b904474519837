"""Tiny networks of diffusers, saved by diffusers itself."""

from pathlib import Path

import torch

CLASSES, SIDE = 3, 4  # of the tiny DiT: classes, and side of its latents


def tiny_transformer(seed: int = 0) -> torch.nn.Module:
    """Return a DiT with one embedding of classes and timesteps, as in the published network."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(seed)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=SIDE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    for parameter in network.parameters():  # published weights have no zeros, new ones do
        parameter.data += 0.1 * torch.randn_like(parameter)
    first, *others = (block.norm1.emb for block in network.transformer_blocks)
    for embedding in others:
        embedding.load_state_dict(first.state_dict())
    return network.eval()


def tiny_vae(latents: int = 4) -> torch.nn.Module:
    """Return a variational autoencoder of factor 2."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latents,
        norm_num_groups=2,
    ).eval()


def save_transformer_pipeline(folder: Path, **options) -> Path:
    """Write the folder of a tiny DiT pipeline; ``options`` are those of ``save_pretrained``."""
    from diffusers import DDIMScheduler

    tiny_transformer().save_pretrained(folder / "transformer", **options)
    tiny_vae().save_pretrained(folder / "vae", **options)
    DDIMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    return folder
