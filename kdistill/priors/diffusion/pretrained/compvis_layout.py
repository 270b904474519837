"""Names and shapes of a CompVis latent-diffusion checkpoint, as networks of diffusers.

Paper: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022.

Everything but the number of attention heads (1 in the published class-conditional model) and the
side of the images follows from the tensors.  A name of the original becomes one of diffusers; no
number changes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdistill.files.inert_pickle import NotReadable
from kdistill.priors.network_files.pickle_values import require

Shapes = Mapping[str, tuple[int, ...]]
Names = dict[str, str]  # of the original, by those of diffusers

GROUPS = 32  # of every group norm of the original
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_CODER = {"conv_in": "conv_in", "conv_out": "conv_out", "norm_out": "conv_norm_out"}


@dataclass
class _Level:
    """A resolution of the UNet: width, number of blocks, whether they attend to the class."""

    width: int = 0
    depth: int = 0
    attends: bool = False


class UNetLayout:
    """The UNet of a checkpoint.

    Attributes:
        names: Names of the original by those of diffusers.
        config: Arguments of ``UNet2DConditionModel``.
    """

    def __init__(self, shapes: Shapes, heads: int, side: int):
        self.shapes, self.names = shapes, Names()
        for old, new in _ENDS.items():
            self._take(old, new)
        levels = self._down()
        self._middle()
        self._up(levels)
        depths = [level.depth for level in levels]
        require(len(set(depths)) == 1, f"levels of {depths} blocks")
        contexts = {
            shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")
        }
        require(len(contexts) == 1, "a network without cross-attention to one class vector")
        (context,) = contexts
        emb = shapes["input_blocks.1.0.emb_layers.1.weight"][0]
        layers = {
            int(found[1])
            for name in shapes
            if (found := re.search(r"transformer_blocks\.(\d+)\.", name))
        }
        self.config: dict[str, Any] = {
            "sample_size": side,
            "in_channels": shapes["input_blocks.0.0.weight"][1],
            "out_channels": shapes["out.2.weight"][0],
            "block_out_channels": [level.width for level in levels],
            "layers_per_block": depths[0],
            "down_block_types": [_block("Down", level) for level in levels],
            "up_block_types": [_block("Up", level) for level in reversed(levels)],
            "cross_attention_dim": context,
            "attention_head_dim": heads,  # of diffusers' name: the number of heads
            "transformer_layers_per_block": len(layers),
            "norm_num_groups": GROUPS,
            "resnet_time_scale_shift": "scale_shift" if emb == 2 * levels[0].width else "default",
        }

    def _take(self, old: str, new: str) -> None:
        for part in ("weight", "bias"):
            require(f"{old}.{part}" in self.shapes, f"no '{old}.{part}'")
            self.names[f"{new}.{part}"] = f"{old}.{part}"

    def _resnet(self, old: str, new: str) -> int:
        """Take a residual block, and return its width."""
        for part, name in _RESNET.items():
            if part != "skip_connection" or f"{old}.{part}.weight" in self.shapes:
                self._take(f"{old}.{part}", f"{new}.{name}")
        return self.shapes[f"{old}.out_layers.3.weight"][0]

    def _attention(self, old: str, new: str) -> bool:
        """Take a spatial transformer, whose names are the same; return whether there is one."""
        require(f"{old}.qkv.weight" not in self.shapes, "attention without a class vector")
        names = [name for name in self.shapes if name.startswith(f"{old}.")]
        if not any("transformer_blocks" in name for name in names):
            return False
        self.names |= {new + name.removeprefix(old): name for name in names}
        return True

    def _down(self) -> list[_Level]:
        """Take the input blocks, and return the levels."""
        levels = [_Level()]
        for n in range(1, _count(self.shapes, r"input_blocks\.(\d+)\.")):
            old, block, level = f"input_blocks.{n}", f"down_blocks.{len(levels) - 1}", levels[-1]
            if f"{old}.0.op.weight" in self.shapes:
                self._take(f"{old}.0.op", f"{block}.downsamplers.0.conv")
                levels.append(_Level())
                continue
            level.width = self._resnet(f"{old}.0", f"{block}.resnets.{level.depth}")
            attends = self._attention(f"{old}.1", f"{block}.attentions.{level.depth}")
            same = level.depth == 0 or attends == level.attends
            require(same, "attention in a part of a level")
            level.attends, level.depth = attends, level.depth + 1
        return levels

    def _middle(self) -> None:
        self._resnet("middle_block.0", "mid_block.resnets.0")
        has_attention = self._attention("middle_block.1", "mid_block.attentions.0")
        require(has_attention, "a middle without cross-attention")
        self._resnet("middle_block.2", "mid_block.resnets.1")

    def _up(self, levels: list[_Level]) -> None:
        """Take the output blocks, of one residual block more per level."""
        per_level = levels[0].depth + 1
        count = _count(self.shapes, r"output_blocks\.(\d+)\.")
        require(count == len(levels) * per_level, f"{count} output blocks of {len(levels)} levels")
        for n in range(count):
            i, j = divmod(n, per_level)
            old, block = f"output_blocks.{n}", f"up_blocks.{i}"
            self._resnet(f"{old}.0", f"{block}.resnets.{j}")
            attends = self._attention(f"{old}.1", f"{block}.attentions.{j}")
            require(attends == levels[-1 - i].attends, "attention in a part of a level")
            if j == per_level - 1 and i < len(levels) - 1:
                self._take(f"{old}.{1 + attends}.conv", f"{block}.upsamplers.0.conv")


class AutoencoderLayout:
    """The autoencoder of a checkpoint.

    Attributes:
        names: Names of the original by those of diffusers.
        network: ``"VQModel"`` or ``"AutoencoderKL"``.
        config: Arguments of it.
    """

    def __init__(self, shapes: Shapes, scale: float):
        require("quant_conv.weight" in shapes, "no autoencoder")
        is_quantised = "quantize.embedding.weight" in shapes
        self.network = "VQModel" if is_quantised else "AutoencoderKL"
        levels = _count(shapes, r"encoder\.down\.(\d+)\.")
        depth = _count(shapes, r"encoder\.down\.0\.block\.(\d+)\.")
        widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
        self.names = dict(_coder_names(shapes, levels))
        z = shapes["quant_conv.weight"][1] // (1 if is_quantised else 2)
        self.config: dict[str, Any] = {
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": widths,
            "layers_per_block": depth,
            "latent_channels": z,
            "norm_num_groups": GROUPS,
            "scaling_factor": scale,
            "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in shapes,
        }
        if is_quantised:
            codes, dim = shapes["quantize.embedding.weight"]
            self.config |= {"num_vq_embeddings": codes, "vq_embed_dim": dim}


def is_squeezed(name: str) -> bool:
    """Return whether an attention's 1x1 convolution becomes a matrix, by diffusers' name."""
    return re.fullmatch(r".*coder\.mid_block\.attentions\.0\.to_.*weight", name) is not None


def _block(way: str, level: _Level) -> str:
    return f"CrossAttn{way}Block2D" if level.attends else f"{way}Block2D"


def _count(shapes: Shapes, pattern: str) -> int:
    """Return one more than the largest number of a pattern."""
    numbers = {int(found[1]) for name in shapes if (found := re.match(pattern, name))}
    require(bool(numbers) and numbers == set(range(len(numbers))), f"odd numbers of {pattern}")
    return len(numbers)


def _coder_names(shapes: Shapes, levels: int) -> Iterable[tuple[str, str]]:
    for name in shapes:
        if name.startswith(("quantize.", "quant_conv.", "post_quant_conv.")):
            yield name, name
        elif name.startswith(("encoder.", "decoder.")):
            coder, _, rest = name.partition(".")
            yield f"{coder}.{_coder_name(rest, levels)}", name


def _layer(name: str) -> str:
    return "conv_shortcut" if name == "nin_shortcut" else name


def _coder_name(name: str, levels: int) -> str:
    path, _, part = name.rpartition(".")
    if found := re.fullmatch(r"(down|up)\.(\d+)\.block\.(\d+)\.(\w+)", path):
        way, level, j, layer = found.groups()
        i = int(level) if way == "down" else levels - 1 - int(level)
        return f"{way}_blocks.{i}.resnets.{j}.{_layer(layer)}.{part}"
    if found := re.fullmatch(r"(down|up)\.(\d+)\.(down|up)sample\.conv", path):
        i = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        return f"{found[1]}_blocks.{i}.{found[1]}samplers.0.conv.{part}"
    if (found := re.fullmatch(r"mid\.attn_1\.(\w+)", path)) and found[1] in _ATTENTION:
        return f"mid_block.attentions.0.{_ATTENTION[found[1]]}.{part}"
    if found := re.fullmatch(r"mid\.block_([12])\.(\w+)", path):
        return f"mid_block.resnets.{int(found[1]) - 1}.{_layer(found[2])}.{part}"
    if path in _CODER:
        return f"{_CODER[path]}.{part}"
    raise NotReadable(f"an autoencoder with '{name[:80]}'")
