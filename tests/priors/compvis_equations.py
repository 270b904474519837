"""The equations of CompVis' latent diffusion on the names of its checkpoints; and tiny checkpoints.

Written as functions of the tensors, apart from the conversion that is tested against them.
"""

import math
from dataclasses import dataclass
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
        self.time, self.context = 0, 0  # numbers of the embedded timestep and of a class vector

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
        self.layer(f"{name}.emb_layers.1", self.time, after)
        self.norm(f"{name}.out_layers.0", after)
        self.layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            self.layer(f"{name}.skip_connection", before, after, 1, 1)

    def transformer(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        self.layer(f"{name}.proj_in", width, width, 1, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, source in (("attn1", width), ("attn2", self.context)):
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


class _Shapes(_Draws):
    """Tensors without numbers by name."""

    def randn(self, name: str, *shape: int, shift: float = 0.0) -> None:
        self.tensors[name] = torch.empty(shape, device="meta")


@dataclass(frozen=True)
class Architecture:
    """Widths and depths of a model, by default those of a tiny one.

    Attributes:
        width: Features of the highest level of the UNet.
        multiples: Widths of its levels, in these.
        depth: Residual blocks of a level.
        attends: Levels that attend to the class.
        context: Numbers of a class vector.
        coder_width: Features of the highest level of the autoencoder.
        coder_multiples: Widths of its levels.
        coder_depth: Residual blocks of a level of its encoder.
        codes: Codes, or 0 for a variational autoencoder.
        rows: Rows of the table of classes.
    """

    width: int = WIDTH
    multiples: tuple[int, ...] = MULTIPLES
    depth: int = 1
    attends: tuple[int, ...] = (1,)
    context: int = CONTEXT
    coder_width: int = WIDTH
    coder_multiples: tuple[int, ...] = MULTIPLES
    coder_depth: int = 1
    codes: int = CODES
    rows: int = ROWS


# Rombach et al., CVPR 2022, and the configuration cin256-v2
PUBLISHED = Architecture(
    width=192,
    multiples=(1, 2, 3, 5),
    depth=2,
    attends=(1, 2, 3),
    context=512,
    coder_width=128,
    coder_multiples=(1, 2, 4),
    coder_depth=2,
    codes=8192,
    rows=1001,
)


def tiny_checkpoint(*, quantised: bool = True, seed: int = 0) -> Tensors:
    """Return random tensors of a class-conditional model: one residual block per level, f = 2."""
    architecture = Architecture(codes=CODES if quantised else 0)
    draws = _Draws(seed)
    _draw(draws, architecture)
    return {
        **draws.tensors,
        "betas": _betas(),
        "scale_factor": torch.tensor(1.0 if quantised else 0.7),
    }


def checkpoint_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors."""
    shapes = _Shapes(0)
    _draw(shapes, architecture)
    return {name: tuple(x.shape) for name, x in shapes.tensors.items()}


def _betas() -> Tensor:
    roots = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64)
    return roots.square().float()


def _draw(draws: _Draws, of: Architecture) -> None:
    _draw_unet(draws, of)
    _draw_coder(draws, of)
    draws.layer("first_stage_model.loss.discriminator.main.0", 3, 8, 4, 4)  # ignored
    draws.randn("cond_stage_model.embedding.weight", of.rows, of.context)


def _draw_unet(draws: _Draws, of: Architecture) -> None:
    unet, ch, last = "model.diffusion_model", of.width, len(of.multiples) - 1
    draws.time, draws.context = 4 * of.width, of.context
    draws.layer(f"{unet}.time_embed.0", of.width, draws.time)
    draws.layer(f"{unet}.time_embed.2", draws.time, draws.time)
    draws.layer(f"{unet}.input_blocks.0.0", LATENTS, ch, 3, 3)
    stack, n = [ch], 1
    for level, multiple in enumerate(of.multiples):
        for _ in range(of.depth):
            draws.res_block(f"{unet}.input_blocks.{n}.0", ch, multiple * of.width)
            ch = multiple * of.width
            if level in of.attends:
                draws.transformer(f"{unet}.input_blocks.{n}.1", ch)
            stack.append(ch)
            n += 1
        if level < last:
            draws.layer(f"{unet}.input_blocks.{n}.0.op", ch, ch, 3, 3)
            stack.append(ch)
            n += 1
    draws.res_block(f"{unet}.middle_block.0", ch, ch)
    draws.transformer(f"{unet}.middle_block.1", ch)
    draws.res_block(f"{unet}.middle_block.2", ch, ch)
    n = 0
    for level, multiple in reversed([*enumerate(of.multiples)]):
        for j in range(of.depth + 1):
            draws.res_block(f"{unet}.output_blocks.{n}.0", ch + stack.pop(), multiple * of.width)
            ch, place = multiple * of.width, 1
            if level in of.attends:
                draws.transformer(f"{unet}.output_blocks.{n}.1", ch)
                place = 2
            if level and j == of.depth:
                draws.layer(f"{unet}.output_blocks.{n}.{place}.conv", ch, ch, 3, 3)
            n += 1
    draws.norm(f"{unet}.out.0", ch)
    draws.layer(f"{unet}.out.2", ch, LATENTS, 3, 3)


def _draw_coder(draws: _Draws, of: Architecture) -> None:
    coder, moments = "first_stage_model", LATENTS * (1 if of.codes else 2)
    widths = [multiple * of.coder_width for multiple in of.coder_multiples]
    ch, last = of.coder_width, len(widths) - 1
    draws.layer(f"{coder}.encoder.conv_in", 3, ch, 3, 3)
    for level, width in enumerate(widths):
        for j in range(of.coder_depth):
            draws.coder_block(f"{coder}.encoder.down.{level}.block.{j}", ch, width)
            ch = width
        if level < last:
            draws.layer(f"{coder}.encoder.down.{level}.downsample.conv", ch, ch, 3, 3)
    draws.coder_middle(f"{coder}.encoder.mid", ch)
    draws.norm(f"{coder}.encoder.norm_out", ch)
    draws.layer(f"{coder}.encoder.conv_out", ch, moments, 3, 3)
    draws.layer(f"{coder}.quant_conv", moments, moments, 1, 1)
    draws.layer(f"{coder}.post_quant_conv", LATENTS, LATENTS, 1, 1)
    draws.layer(f"{coder}.decoder.conv_in", LATENTS, ch, 3, 3)
    draws.coder_middle(f"{coder}.decoder.mid", ch)
    for level, width in reversed([*enumerate(widths)]):
        for j in range(of.coder_depth + 1):
            draws.coder_block(f"{coder}.decoder.up.{level}.block.{j}", ch, width)
            ch = width
        if level:
            draws.layer(f"{coder}.decoder.up.{level}.upsample.conv", ch, ch, 3, 3)
    draws.norm(f"{coder}.decoder.norm_out", ch)
    draws.layer(f"{coder}.decoder.conv_out", ch, 3, 3, 3)
    if of.codes:
        draws.randn(f"{coder}.quantize.embedding.weight", of.codes, LATENTS)


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
