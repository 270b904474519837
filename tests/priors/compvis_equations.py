"""The equations of CompVis' latent diffusion on the names of its checkpoints; and tiny checkpoints.

Written as functions of the tensors, apart from the conversion that is tested against them.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]

WIDTH, CONTEXT, CODES, LATENTS = 32, 6, 16, 3
MULTIPLES = (1, 2)  # of the widths of the two levels; only the lower one has attention
ROWS = 4  # of the class table


def _norm(w: Tensors, name: str, x: Tensor, eps: float) -> Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def _conv(w: Tensors, name: str, x: Tensor, **options: Any) -> Tensor:
    weight = w[f"{name}.weight"]
    options.setdefault("padding", weight.shape[-1] // 2)
    return F.conv2d(x, weight, w[f"{name}.bias"], **options)


def _linear(w: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _res_block(w: Tensors, name: str, x: Tensor, emb: Tensor) -> Tensor:
    h = _conv(w, f"{name}.in_layers.2", F.silu(_norm(w, f"{name}.in_layers.0", x, 1e-5)))
    h = h + _linear(w, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    h = _conv(w, f"{name}.out_layers.3", F.silu(_norm(w, f"{name}.out_layers.0", h, 1e-5)))
    skip = f"{name}.skip_connection"
    return h + (_conv(w, skip, x) if f"{skip}.weight" in w else x)


def _attention(w: Tensors, name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    q, k, v = (
        _linear(w, f"{name}.to_{part}", source).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part, source in (("q", x), ("k", context), ("v", context))
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return _linear(w, f"{name}.to_out.0", (weights @ v).transpose(1, 2).flatten(-2))


def _layer_norm(w: Tensors, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _spatial_transformer(w: Tensors, name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
    h = _conv(w, f"{name}.proj_in", _norm(w, f"{name}.norm", x, 1e-6))
    side = h.shape[-1]
    h, block = h.flatten(2).transpose(1, 2), f"{name}.transformer_blocks.0"
    n = _layer_norm(w, f"{block}.norm1", h)
    h = h + _attention(w, f"{block}.attn1", n, n, heads)
    h = h + _attention(w, f"{block}.attn2", _layer_norm(w, f"{block}.norm2", h), context, heads)
    n = _linear(w, f"{block}.ff.net.0.proj", _layer_norm(w, f"{block}.norm3", h))
    value, gate = n.chunk(2, -1)
    h = h + _linear(w, f"{block}.ff.net.2", value * F.gelu(gate))
    h = h.transpose(1, 2).unflatten(2, (side, side))
    return x + _conv(w, f"{name}.proj_out", h)


def _block(w: Tensors, name: str, x: Tensor, emb: Tensor, context: Tensor, heads: int) -> Tensor:
    """Apply an entry of input_blocks, middle_block or output_blocks, layer by layer."""
    for i in range(3):
        layer = f"{name}.{i}"
        if f"{layer}.in_layers.0.weight" in w:
            x = _res_block(w, layer, x, emb)
        elif f"{layer}.proj_in.weight" in w:
            x = _spatial_transformer(w, layer, x, context, heads)
        elif f"{layer}.op.weight" in w:
            x = _conv(w, f"{layer}.op", x, stride=2, padding=1)
        elif f"{layer}.conv.weight" in w:
            x = _conv(w, f"{layer}.conv", F.interpolate(x, scale_factor=2.0, mode="nearest"))
        elif f"{layer}.weight" in w:
            x = _conv(w, layer, x)
    return x


def predict_noise(w: Tensors, x: Tensor, t: Tensor, context: Tensor, heads: int = 1) -> Tensor:
    """Return the noise that the UNet of a checkpoint predicts; ``context`` is ``[B, 1, D]``."""
    prefix = "model.diffusion_model."
    w = {name.removeprefix(prefix): x for name, x in w.items() if name.startswith(prefix)}
    half = w["time_embed.0.weight"].shape[1] // 2
    angles = t[:, None].to(x.dtype) * torch.exp(
        -math.log(10000) * torch.arange(half, dtype=x.dtype) / half
    )
    emb = _linear(w, "time_embed.0", torch.cat([angles.cos(), angles.sin()], -1))
    emb = _linear(w, "time_embed.2", F.silu(emb))
    stack: list[Tensor] = []
    n = 0
    while any(name.startswith(f"input_blocks.{n}.") for name in w):
        x = _block(w, f"input_blocks.{n}", x, emb, context, heads)
        stack.append(x)
        n += 1
    x = _block(w, "middle_block", x, emb, context, heads)
    for i in range(n):
        x = torch.cat([x, stack.pop()], 1)
        x = _block(w, f"output_blocks.{i}", x, emb, context, heads)
    return _conv(w, "out.2", F.silu(_norm(w, "out.0", x, 1e-5)))


def _coder_block(w: Tensors, name: str, x: Tensor) -> Tensor:
    h = _conv(w, f"{name}.conv1", F.silu(_norm(w, f"{name}.norm1", x, 1e-6)))
    h = _conv(w, f"{name}.conv2", F.silu(_norm(w, f"{name}.norm2", h, 1e-6)))
    return h + (_conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def _coder_middle(w: Tensors, name: str, x: Tensor) -> Tensor:
    x = _coder_block(w, f"{name}.block_1", x)
    n = _norm(w, f"{name}.attn_1.norm", x, 1e-6)
    q, k, v = (_conv(w, f"{name}.attn_1.{part}", n).flatten(2) for part in "qkv")
    weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
    h = (v @ weights.transpose(1, 2)).view_as(x)
    return _coder_block(w, f"{name}.block_2", x + _conv(w, f"{name}.attn_1.proj_out", h))


def _first_stage(w: Tensors) -> Tensors:
    prefix = "first_stage_model."
    return {name.removeprefix(prefix): x for name, x in w.items() if name.startswith(prefix)}


def encode(w: Tensors, images: Tensor) -> Tensor:
    """Return what the encoder of a checkpoint gives before the latents are quantised."""
    w = _first_stage(w)
    x, levels = _conv(w, "encoder.conv_in", images), len(MULTIPLES)
    for i in range(levels):
        x = _coder_block(w, f"encoder.down.{i}.block.0", x)
        if i < levels - 1:
            padded = F.pad(x, (0, 1, 0, 1))
            x = _conv(w, f"encoder.down.{i}.downsample.conv", padded, stride=2, padding=0)
    x = _coder_middle(w, "encoder.mid", x)
    x = _conv(w, "encoder.conv_out", F.silu(_norm(w, "encoder.norm_out", x, 1e-6)))
    return _conv(w, "quant_conv", x)


def decode(w: Tensors, latents: Tensor) -> Tensor:
    """Return the images of the codes that are nearest to the latents, where there is a codebook."""
    w = _first_stage(w)
    x = latents
    if "quantize.embedding.weight" in w:
        codes, rows = w["quantize.embedding.weight"], latents.permute(0, 2, 3, 1)
        distances = (rows[..., None, :] - codes).square().sum(-1)
        x = codes[distances.argmin(-1)].permute(0, 3, 1, 2)
    x = _conv(w, "decoder.conv_in", _conv(w, "post_quant_conv", x))
    x = _coder_middle(w, "decoder.mid", x)
    for i in reversed(range(len(MULTIPLES))):
        for j in range(2):
            x = _coder_block(w, f"decoder.up.{i}.block.{j}", x)
        if i:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = _conv(w, f"decoder.up.{i}.upsample.conv", x)
    return _conv(w, "decoder.conv_out", F.silu(_norm(w, "decoder.norm_out", x, 1e-6)))


class _Draws:
    """Random tensors by name."""

    def __init__(self, seed: int):
        self.tensors: Tensors = {}
        self.random = torch.Generator().manual_seed(seed)

    def randn(self, name: str, *shape: int, shift: float = 0.0) -> None:
        fan_in = max(1, math.prod(shape[1:]))
        draws = torch.randn(shape, generator=self.random)
        self.tensors[name] = draws / math.sqrt(fan_in) * (1 if len(shape) > 1 else 0.1) + shift

    def norm(self, name: str, width: int) -> None:
        self.randn(f"{name}.weight", width, shift=1.0)
        self.randn(f"{name}.bias", width)

    def layer(self, name: str, fan_in: int, fan_out: int, *kernel: int, bias: bool = True) -> None:
        self.randn(f"{name}.weight", fan_out, fan_in, *kernel)
        if bias:
            self.randn(f"{name}.bias", fan_out)

    def res_block(self, name: str, before: int, after: int) -> None:
        self.norm(f"{name}.in_layers.0", before)
        self.layer(f"{name}.in_layers.2", before, after, 3, 3)
        self.layer(f"{name}.emb_layers.1", 4 * WIDTH, after)
        self.norm(f"{name}.out_layers.0", after)
        self.layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            self.layer(f"{name}.skip_connection", before, after, 1, 1)

    def transformer(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        self.layer(f"{name}.proj_in", width, width, 1, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, source in (("attn1", width), ("attn2", CONTEXT)):
            self.layer(f"{block}.{attention}.to_q", width, width, bias=False)
            self.layer(f"{block}.{attention}.to_k", source, width, bias=False)
            self.layer(f"{block}.{attention}.to_v", source, width, bias=False)
            self.layer(f"{block}.{attention}.to_out.0", width, width)
        self.layer(f"{block}.ff.net.0.proj", width, 8 * width)
        self.layer(f"{block}.ff.net.2", 4 * width, width)
        for n in (1, 2, 3):
            self.norm(f"{block}.norm{n}", width)
        self.layer(f"{name}.proj_out", width, width, 1, 1)

    def coder_block(self, name: str, before: int, after: int) -> None:
        self.norm(f"{name}.norm1", before)
        self.layer(f"{name}.conv1", before, after, 3, 3)
        self.norm(f"{name}.norm2", after)
        self.layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            self.layer(f"{name}.nin_shortcut", before, after, 1, 1)

    def coder_middle(self, name: str, width: int) -> None:
        self.coder_block(f"{name}.block_1", width, width)
        self.norm(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.layer(f"{name}.attn_1.{part}", width, width, 1, 1)
        self.coder_block(f"{name}.block_2", width, width)


def tiny_checkpoint(*, quantised: bool = True, seed: int = 0) -> Tensors:
    """Return the tensors of a class-conditional model: one residual block per level, f = 2."""
    draws = _Draws(seed)
    low, high = (WIDTH * m for m in MULTIPLES)
    unet = "model.diffusion_model"
    draws.layer(f"{unet}.time_embed.0", WIDTH, 4 * WIDTH)
    draws.layer(f"{unet}.time_embed.2", 4 * WIDTH, 4 * WIDTH)
    draws.layer(f"{unet}.input_blocks.0.0", LATENTS, low, 3, 3)
    draws.res_block(f"{unet}.input_blocks.1.0", low, low)
    draws.layer(f"{unet}.input_blocks.2.0.op", low, low, 3, 3)
    draws.res_block(f"{unet}.input_blocks.3.0", low, high)
    draws.transformer(f"{unet}.input_blocks.3.1", high)
    draws.res_block(f"{unet}.middle_block.0", high, high)
    draws.transformer(f"{unet}.middle_block.1", high)
    draws.res_block(f"{unet}.middle_block.2", high, high)
    for n, (before, after) in enumerate(((2 * high, high), (high + low, high))):
        draws.res_block(f"{unet}.output_blocks.{n}.0", before, after)
        draws.transformer(f"{unet}.output_blocks.{n}.1", high)
    draws.layer(f"{unet}.output_blocks.1.2.conv", high, high, 3, 3)
    draws.res_block(f"{unet}.output_blocks.2.0", high + low, low)
    draws.res_block(f"{unet}.output_blocks.3.0", 2 * low, low)
    draws.norm(f"{unet}.out.0", low)
    draws.layer(f"{unet}.out.2", low, LATENTS, 3, 3)
    coder, moments = "first_stage_model", LATENTS * (1 if quantised else 2)
    draws.layer(f"{coder}.encoder.conv_in", 3, low, 3, 3)
    draws.coder_block(f"{coder}.encoder.down.0.block.0", low, low)
    draws.layer(f"{coder}.encoder.down.0.downsample.conv", low, low, 3, 3)
    draws.coder_block(f"{coder}.encoder.down.1.block.0", low, high)
    draws.coder_middle(f"{coder}.encoder.mid", high)
    draws.norm(f"{coder}.encoder.norm_out", high)
    draws.layer(f"{coder}.encoder.conv_out", high, moments, 3, 3)
    draws.layer(f"{coder}.quant_conv", moments, moments, 1, 1)
    draws.layer(f"{coder}.post_quant_conv", LATENTS, LATENTS, 1, 1)
    draws.layer(f"{coder}.decoder.conv_in", LATENTS, high, 3, 3)
    draws.coder_middle(f"{coder}.decoder.mid", high)
    for j, before in enumerate((high, high)):
        draws.coder_block(f"{coder}.decoder.up.1.block.{j}", before, high)
    draws.layer(f"{coder}.decoder.up.1.upsample.conv", high, high, 3, 3)
    for j, before in enumerate((high, low)):
        draws.coder_block(f"{coder}.decoder.up.0.block.{j}", before, low)
    draws.norm(f"{coder}.decoder.norm_out", low)
    draws.layer(f"{coder}.decoder.conv_out", low, 3, 3, 3)
    if quantised:
        draws.randn(f"{coder}.quantize.embedding.weight", CODES, LATENTS)
    draws.layer(f"{coder}.loss.discriminator.main.0", 3, 8, 4, 4)  # ignored
    draws.randn("cond_stage_model.embedding.weight", ROWS, CONTEXT)
    roots = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64)
    draws.tensors["betas"] = roots.square().float()
    draws.tensors["scale_factor"] = torch.tensor(1.0 if quantised else 0.7)
    return draws.tensors


def averaged(w: Tensors, factor: float = 0.5) -> Tensors:
    """Return averaged weights of the UNet, by the names that CompVis gives them."""
    return {
        "model_ema." + name.removeprefix("model.").replace(".", ""): factor * x
        for name, x in w.items()
        if name.startswith("model.diffusion_model.")
    }


def write_checkpoint(path: Path, tensors: Tensors, **beside: Any) -> Path:
    """Write a checkpoint as its training library does, with other entries beside the tensors."""
    torch.save({"epoch": 3, "global_step": 7, "state_dict": tensors, **beside}, path)
    return path
