"""Tiny networks, and files of them in the layout that the original repositories write.

``kdistill/priors/network_files`` documents the layout.  The classes that pickle names
(``torch_utils.persistence`` and others) exist here for the moment of writing alone, so that the
standard pickler writes their names.
"""

import io
import pickle
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdistill.priors.stylegan import (
    Generator,
    InputConfig,
    LayerConfig,
    MappingConfig,
    StyleGAN2,
    StyleGAN3,
    StyleGAN3Config,
    new_stylegan2,
)

# name, size in, size out, channels in, channels out, up, down, kernel, is_torgb: a StyleGAN-XL of
# 16 px whose numbering skips
XL_LAYERS = (
    ("L0_20_6", 20, 20, 6, 6, 2, 2, 3, False),
    ("L7_28_6", 20, 28, 6, 5, 4, 2, 3, False),
    ("L9_28_5", 28, 28, 5, 5, 2, 2, 3, False),
    ("L10_16_4", 28, 16, 5, 4, 2, 2, 3, False),
    ("L11_16_3", 16, 16, 4, 3, 1, 1, 1, True),
)
BUFFERS = {
    "w_avg",
    "magnitude_ema",
    "up_filter",
    "down_filter",
    "resample_filter",
    "noise_const",
    "transform",
    "freqs",
    "phases",
}
ARCHITECTURE, MULTIPLIER = "skip", 0.01  # as written into the files; tests change them


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_stylegan2(
    classes: int = 3, size: int = 16, channels: int = 3, **options: Any
) -> StyleGAN2:
    """Return a StyleGAN2 with noise switched on and a clamp."""
    widths = {"z_dim": 5, "w_dim": 6, "channel_base": 64, "channel_max": 8}
    options = {**widths, "clamp": 256.0, **options}
    generator = new_stylegan2(
        size=size, channels=channels, classes=classes, generator=rng(), **options
    )
    random = rng(1)
    changed = {
        n: torch.randn(x.shape, generator=random)
        for n, x in generator.tensors.items()
        if n.endswith(("bias", "strength"))
    }
    return generator.with_tensors(
        {name: 0.2 * x + (1.0 if "affine" in name else 0.0) for name, x in changed.items()}
    )


def tiny_stylegan3(classes: int = 3, table: bool = False, radial: bool = False) -> StyleGAN3:
    """Return a StyleGAN3, or with ``table`` a StyleGAN-XL.

    Their filters are not symmetric, so that a flip shows.
    """
    random, taps = rng(2), 6
    tensors: dict[str, torch.Tensor] = {}

    def randn(name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> None:
        tensors[name] = scale * torch.randn(shape, generator=random) + shift

    def fir(factor: int, is_separable: bool) -> torch.Tensor | None:
        if factor == 1:
            return None
        line = torch.rand(taps * factor, generator=random) + 0.5
        line = line / line.sum()
        return line if is_separable else torch.outer(line, line)

    def dense(name: str, fan_in: int, fan_out: int, shift: float = 0.0, scale: float = 1.0) -> None:
        randn(f"{name}.weight", fan_out, fan_in, scale=scale)
        randn(f"{name}.bias", fan_out, scale=0.1, shift=shift)

    embedded = 4 if table else 6
    if table:
        randn("mapping.embed.weight", classes, 4)
        dense("mapping.embed_proj", 4, embedded)
    elif classes:
        dense("mapping.embed", classes, embedded)
    dense("mapping.fc0", 5 + (embedded if classes else 0), 6, scale=100.0)
    dense("mapping.fc1", 6, 6, scale=100.0)
    randn("mapping.w_avg", *((classes, 6) if table else (6,)))
    randn("synthesis.input.weight", 6, 6)
    dense("synthesis.input.affine", 6, 4, scale=0.2)
    tensors["synthesis.input.affine.bias"] = torch.tensor([1.0, 0.2, 0.1, -0.1])
    tensors["synthesis.input.transform"] = torch.eye(3)
    randn("synthesis.input.freqs", 6, 2)
    randn("synthesis.input.phases", 6, scale=0.3)
    layers = []
    for name, size_in, size_out, c_in, c_out, up, down, kernel, is_torgb in XL_LAYERS:
        path = f"synthesis.{name}"
        randn(f"{path}.weight", c_out, c_in, kernel, kernel)
        randn(f"{path}.bias", c_out, scale=0.1)
        dense(f"{path}.affine", 6, c_in, shift=1.0)
        tensors[f"{path}.magnitude_ema"] = torch.tensor(1.0 + 0.1 * len(layers))
        up_taps, down_taps = fir(up, True), fir(down, not radial)
        for part, filter_taps in (("up_filter", up_taps), ("down_filter", down_taps)):
            if filter_taps is not None:
                tensors[f"{path}.{part}"] = filter_taps
        lengths = [1 if x is None else len(x) for x in (up_taps, down_taps)]
        total = (size_out - 1) * down + 1 - (size_in + kernel - 1) * up + sum(lengths) - 2
        low = (total + up) // 2
        padding = (low, total - low, low, total - low)
        layers.append(
            LayerConfig(
                name=name, is_torgb=is_torgb, up=up, down=down, padding=padding, clamp=256.0
            )
        )
    embedding = "none" if not classes else "table" if table else "linear"
    mapping = MappingConfig(z_dim=5, w_dim=6, classes=classes, num_layers=2, embedding=embedding)
    source = InputConfig(size=(20, 20), sampling_rate=16.0, bandwidth=2.0)
    config = StyleGAN3Config(
        mapping=mapping, size=16, channels=3, output_scale=0.25, input=source, layers=tuple(layers)
    )  # fmt: skip
    return StyleGAN3(config, tensors)


NETWORKS = {
    "stylegan2-ada": tiny_stylegan2,
    "stylegan2-unconditional": lambda: tiny_stylegan2(classes=0),
    "stylegan3": tiny_stylegan3,
    "stylegan3-radial": lambda: tiny_stylegan3(radial=True),
    "stylegan-xl": lambda: tiny_stylegan3(table=True),
}


def drawn_images(generator: Generator, count: int = 3) -> torch.Tensor:
    """Return the same images of a generator every time."""
    z = torch.randn(count, 5, generator=rng(7))
    return generator.forward(generator.mapping(z, torch.arange(count) % 3, psi=0.7))


class Persistent:
    """A module of the original decorator: a call with source code, class name and state."""

    def __init__(self, class_name: str, state: dict[str, Any]):
        self.class_name, self.state = class_name, state


def layout(generator: Generator) -> Persistent:
    """Return the tree of modules of the original repository."""
    tree: dict[str, Any] = {}
    for name, tensor in generator.tensors.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tensor
    return _module("", tree, generator)


def _module(path: str, tree: dict[str, Any], generator: Generator) -> Any:
    mapping, config = generator.config.mapping, generator.config
    if path == "mapping.embed" and mapping.embedding == "table":
        table = torch.nn.Embedding(*tree["weight"].shape)
        table.weight = torch.nn.Parameter(tree["weight"].clone())
        return table
    own = {name: x for name, x in tree.items() if isinstance(x, torch.Tensor)}
    children = {
        name: _module(f"{path}.{name}".strip("."), x, generator)
        for name, x in tree.items()
        if isinstance(x, dict)
    }
    state: dict[str, Any] = {
        **({"bias_gain": MULTIPLIER} if path.startswith("mapping.fc") else {}),
        "training": False,
        "_parameters": {
            name: torch.nn.Parameter(x.clone()) for name, x in own.items() if name not in BUFFERS
        },
        "_buffers": {name: x.clone() for name, x in own.items() if name in BUFFERS},
        "_non_persistent_buffers_set": set(),
        "_modules": children,
    }
    top = {
        "z_dim": mapping.z_dim,
        "c_dim": mapping.classes,
        "w_dim": mapping.w_dim,
        "num_ws": generator.num_ws,
    }
    size = {"img_resolution": generator.size, "img_channels": generator.channels}
    if path == "":
        return Persistent("Generator", {**state, **top, **size})
    if path == "mapping":
        return Persistent("MappingNetwork", {**state, **top, "num_layers": mapping.num_layers})
    return Persistent("SynthesisPart", {**state, **_attributes(path, generator, config, size)})


def _attributes(
    path: str, generator: Generator, config: Any, size: dict[str, int]
) -> dict[str, Any]:
    if isinstance(generator, StyleGAN2):
        if path.count(".") == 1:
            return {"architecture": ARCHITECTURE, "use_fp16": False}
        return {"conv_clamp": config.clamp}
    layers = {f"synthesis.{layer.name}": layer for layer in config.layers}
    if path == "synthesis":
        return {
            "layer_names": [*generator.layer_names],
            "output_scale": config.output_scale,
            "margin_size": 10,
            **size,
        }
    if path == "synthesis.input":
        rate, bandwidth = np.float64(config.input.sampling_rate), np.float64(config.input.bandwidth)
        return {
            "size": np.array(config.input.size),
            "sampling_rate": rate,
            "bandwidth": bandwidth,
            "channels": 6,
        }
    if path in layers:
        layer = layers[path]
        return {
            "is_torgb": layer.is_torgb,
            "up_factor": np.int64(layer.up),
            "down_factor": np.int64(layer.down),
            "padding": list(layer.padding),
            "conv_clamp": layer.clamp,
            "use_fp16": True,
        }
    return {}


@contextmanager
def _made_up(*names: str):
    """Give modules and functions of these names to the pickler, and take them away again."""
    made = {}
    before = dict(sys.modules)
    for full in names:
        module, _, name = full.rpartition(".")
        for end in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:end])
            sys.modules.setdefault(part, types.ModuleType(part))
            above, _, last = part.rpartition(".")
            if above:  # as an import does; dill looks there
                setattr(sys.modules[above], last, sys.modules[part])

        def function(*args: Any) -> None: ...

        function.__module__, function.__qualname__, function.__name__ = module, name, name
        setattr(sys.modules[module], name, function)
        made[full] = function
    try:
        yield made
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
CREATE_ARRAY = "dill._dill._create_array"
LOAD_TYPE = "dill._dill._load_type"


def write(
    path: Path,
    generator: Generator,
    *,
    dill: bool = False,
    cuda: bool = False,
    protocol: int = 4,
    **beside: Any,
) -> Path:
    """Write a network file.

    Args:
        path: Path of the file.
        generator: The network, written as G_ema.
        dill: Whether to write as dill does: arrays through its own function, types by its table.
        cuda: Whether the tensors are written as those of a GPU.
        protocol: Protocol of pickle.
        beside: Further entries of the top dictionary.
    """
    with _made_up(PERSISTENT, CREATE_ARRAY, LOAD_TYPE) as made:

        class Pickler(pickle.Pickler):
            def reducer_override(self, x: Any) -> Any:
                if isinstance(x, Persistent):
                    meta = {
                        "type": "class",
                        "version": 6,
                        "module_src": "raise SystemExit('run')",
                        "class_name": x.class_name,
                    }
                    return made[PERSISTENT], ({**meta, "state": x.state},)
                if isinstance(x, np.ndarray) and dill:
                    function, arguments, state = x.__reduce__()
                    return made[CREATE_ARRAY], (function, arguments, state, None)
                if isinstance(x, set) and dill:
                    return _Call(made[LOAD_TYPE], ("SetType",)), ([],)
                if isinstance(x, _Call):
                    return x.function, x.arguments
                if isinstance(x, torch.storage.TypedStorage) and cuda:
                    function, (raw,) = x.__reduce__()
                    return function, (
                        raw.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"),
                    )
                return NotImplemented

        stream = io.BytesIO()
        top = {
            "G": None,
            "D": None,
            "G_ema": layout(generator),
            "training_set_kwargs": {"path": "x.zip"},
            **beside,
        }
        Pickler(stream, protocol).dump(top)
    path.write_bytes(stream.getvalue())
    return path


class _Call:
    """A value that is pickled as a call and can stand for a function."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]):
        self.function, self.arguments = function, arguments

    def __call__(self) -> None: ...
