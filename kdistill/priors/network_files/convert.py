"""``prior convert``: the tensors and the configuration of a network file, taken out without running anything in it.

Such a file is a pickle (StyleGAN-XL: written by dill) of a dictionary with ``G_ema``, the generator
to use.  Its modules are persistent objects that carry their own source code; the stock loader runs
it, this one does not look at it.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill.errors import ConfigError, DataError
from kdistill.files import read_regular
from kdistill.files.inert_pickle import Name, NotReadable, parse
from kdistill.priors.network_files.generator_folder import save_generator
from kdistill.priors.network_files.limits import MAX_SIDE, excess
from kdistill.priors.network_files.pickle_values import Module, Reader, table
from kdistill.priors.stylegan import (
    MAPPING_LR,
    Generator,
    InputConfig,
    LayerConfig,
    MappingConfig,
    StyleGAN2,
    StyleGAN2Config,
    StyleGAN3,
    StyleGAN3Config,
)

_log = logging.getLogger("kdistill")
SLACK = 1 << 20  # bytes

# what a network has no use for, and an attack has: whoever names it means harm, though nothing is
# run either way
_HOSTILE_MODULES = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "pty", "runpy", "importlib", "ctypes", "_ctypes",
    "code", "codeop", "commands", "pickle", "_pickle", "cPickle", "marshal", "urllib", "requests", "http", "ftplib",
    "smtplib", "webbrowser", "pip", "multiprocessing", "asyncio", "signal", "platform", "tempfile", "timeit",
    "cProfile", "profile", "pdb", "bdb", "trace", "zipimport", "nturl2path", "imaplib", "telnetlib", "_posixsubprocess",
    "pydoc", "doctest", "idlelib", "venv", "ensurepip",
}  # fmt: skip
_BUILTIN_MODULES = {"builtins", "__builtin__", "__builtins__"}
_HOSTILE_BUILTINS = {
    "eval",
    "exec",
    "execfile",
    "compile",
    "open",
    "file",
    "input",
    "__import__",
    "breakpoint",
    "apply",
    "help",
}


def read_network(path: str | Path) -> Generator:
    """Return the generator of a network file of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL.

    The file is parsed, never unpickled: no name in it is imported, no code in it is compiled,
        tensors are copied from bytes
    (those of a GPU too).  What is not the generator is left aside.

    Raises:
        DataError: The file cannot be read, names commands, is no pickle of such a network, or its
            parts do not fit together.

    Cost: the file and its generator's tensors in memory.
    """
    path = Path(path).expanduser()
    try:
        data = read_regular(path, follow=True)
    except OSError as error:
        raise DataError(
            f"{path}: expected a network file, got: {error.strerror}; check the path"
        ) from error
    try:
        parsed = parse(data)
    except NotReadable as error:
        raise _not_a_network(path, f"no pickle that can be read ({_short(error)})") from error
    hostile = sorted(
        (name for name in parsed.names if _is_hostile(name)),
        key=lambda name: (name.module, name.name),
    )
    if hostile:
        listed = _short(", ".join(map(str, hostile[:5])))
        raise DataError(
            f"{path}: expected a network, got a file that asks to run {listed}; nothing of it was "
            "run: "
            "do not open it with anything else, and fetch the network again from its authors"
        )
    reader = Reader(len(data) + SLACK)
    try:
        network = reader.module(_generator_in(parsed.value))
        generator = _built(network, reader)
        too_much = excess(generator)
        if too_much:
            raise NotReadable(too_much)
    except NotReadable as error:
        raise _not_a_network(path, str(error)) from error
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        raise _not_a_network(
            path, f"parts that do not fit together ({type(error).__name__}: {_short(error)})"
        ) from error
    _try(generator, path)
    return generator


def convert_network(path: str | Path, folder: str | Path) -> Generator:
    """Write the generator of a network file as safetensors and JSON, which is all that later loads look at.

    Raises:
        DataError: As ``read_network``, or the folder cannot be written.
    """
    path = Path(path).expanduser()
    generator = read_network(path)
    digest = hashlib.sha256(read_regular(path, follow=True)).hexdigest()
    save_generator(generator, folder, {"source": path.name, "source_sha256": digest})
    return generator


def _generator_in(value: Any) -> Any:
    """Return the record of G_ema, or the value itself where the file is a bare network."""
    try:
        return table(value)["G_ema"]
    except NotReadable:
        return value
    except KeyError:
        raise NotReadable("a dictionary without G_ema") from None


def _built(network: Module, reader: Reader) -> Generator:
    if not {"mapping", "synthesis"} <= set(network.children):
        raise NotReadable(f"a {_short(network.class_name)} without mapping and synthesis")
    tensors = {
        name: x.to(torch.float32) if x.is_floating_point() else x
        for name, x in network.all_tensors().items()
        if name.startswith(("mapping.", "synthesis."))
    }
    values = {
        name: reader.plain(network.values[name])
        for name in ("z_dim", "w_dim", "c_dim", "img_resolution", "img_channels")
    }
    mapping = _mapping(network.children["mapping"], values, reader)
    synthesis = network.children["synthesis"]
    size = int(values["img_resolution"])
    if size > MAX_SIDE:  # before a list of layers is made for it
        raise NotReadable(f"sizes beyond {MAX_SIDE} pixels")
    common = {"mapping": mapping, "size": size, "channels": int(values["img_channels"])}
    generator: Generator
    if "input" in synthesis.children:
        generator = StyleGAN3(_stylegan3(synthesis, reader, common), tensors)
    elif "b4" in synthesis.children:
        generator = StyleGAN2(_stylegan2(synthesis, reader, common), tensors)
    else:
        raise NotReadable("a synthesis network that is neither StyleGAN2 nor StyleGAN3")
    num_ws = reader.plain(network.values.get("num_ws", generator.num_ws))
    if num_ws != generator.num_ws:
        raise NotReadable(f"num_ws {num_ws} where its layers need {generator.num_ws}")
    return generator


def _mapping(mapping: Module, values: dict[str, Any], reader: Reader) -> MappingConfig:
    layers = 0
    while f"fc{layers}" in mapping.children:
        gain = reader.plain(mapping.children[f"fc{layers}"].values.get("bias_gain", MAPPING_LR))
        if gain != MAPPING_LR:
            raise NotReadable(
                f"a mapping whose layers have the learning rate multiplier {gain}, where "
                f"{MAPPING_LR} is understood"
            )
        layers += 1
    embedding = "none"
    if values["c_dim"]:
        embedding = "table" if "embed_proj" in mapping.children else "linear"
    return MappingConfig(
        z_dim=int(values["z_dim"]),
        w_dim=int(values["w_dim"]),
        classes=int(values["c_dim"]),
        num_layers=layers,
        embedding=embedding,  # type: ignore[arg-type]
    )


def _stylegan3(synthesis: Module, reader: Reader, common: dict[str, Any]) -> StyleGAN3Config:
    def value(module: Module, name: str) -> Any:
        return reader.plain(module.values[name])

    source = synthesis.children["input"]
    width, height = value(source, "size")
    layers = []
    for name in value(synthesis, "layer_names"):
        layer = synthesis.children[name]
        clamp = value(layer, "conv_clamp")
        layers.append(
            LayerConfig(
                name=name,
                is_torgb=bool(value(layer, "is_torgb")),
                up=int(value(layer, "up_factor")),
                down=int(value(layer, "down_factor")),
                padding=tuple(int(n) for n in value(layer, "padding")),  # type: ignore[arg-type]
                clamp=None if clamp is None else float(clamp),
            )
        )
    rate, bandwidth = float(value(source, "sampling_rate")), float(value(source, "bandwidth"))
    return StyleGAN3Config(
        **common,
        output_scale=float(value(synthesis, "output_scale")),
        input=InputConfig(size=(int(width), int(height)), sampling_rate=rate, bandwidth=bandwidth),
        layers=tuple(layers),
    )


def _stylegan2(synthesis: Module, reader: Reader, common: dict[str, Any]) -> StyleGAN2Config:
    for name, block in synthesis.children.items():
        architecture = reader.plain(block.values.get("architecture", "skip"))
        if architecture != "skip":
            raise NotReadable(
                f"a StyleGAN2 of architecture {_short(architecture)} in {name}, where 'skip' is "
                "understood"
            )
    clamp = reader.plain(synthesis.children["b4"].children["conv1"].values.get("conv_clamp"))
    return StyleGAN2Config(**common, clamp=None if clamp is None else float(clamp))


def _try(generator: Generator, path: Path) -> None:
    """Render one image: what is missing or has the wrong shape shows here, not in a later run."""
    mapping = generator.config.mapping
    try:
        with torch.no_grad():
            label = torch.zeros(1, dtype=torch.int64)
            ws = generator.mapping(torch.ones(1, mapping.z_dim), label)
            image: Tensor = generator.forward(ws)
    except KeyError as error:
        raise _not_a_network(path, f"a generator without {_short(error)}") from error
    except (RuntimeError, ConfigError, ValueError, IndexError) as error:
        raise _not_a_network(path, f"tensors that do not fit together ({_short(error)})") from error
    wanted = (1, generator.channels, generator.size, generator.size)
    if tuple(image.shape) != wanted:
        raise _not_a_network(path, f"a generator of images {list(image.shape)}, not {list(wanted)}")
    if not bool(torch.isfinite(image).all()):
        _log.warning(
            "%s: its first image is not finite; look at what it draws before using it", path
        )


def _is_hostile(name: Name) -> bool:
    top = name.module.partition(".")[0]
    if top in _BUILTIN_MODULES:
        return name.name.partition(".")[0] in _HOSTILE_BUILTINS
    return top in _HOSTILE_MODULES


def _not_a_network(path: Path, got: str) -> DataError:
    return DataError(
        f"{path}: expected a network file of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL, got {got}; "
        "fetch it again, or choose the .pkl that the authors published"
    )


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 160 else line[:157] + "..."
