"""``prior convert``: tensors and configuration of a network file, taken out without running it.

Such a file is a pickle (StyleGAN-XL: written by dill) of a dictionary with ``G_ema``, the generator
to use.  Its modules are persistent objects that carry their own source code; the stock loader runs
it, this one ignores it.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from kdistill.errors import ConfigError, DataError
from kdistill.files import read_regular
from kdistill.files.hostile_names import hostile_names
from kdistill.files.inert_pickle import NotReadable, parse
from kdistill.priors.network_files.generator_folder import save_generator
from kdistill.priors.network_files.limits import MAX_SIDE, excess
from kdistill.priors.network_files.pickle_values import NetworkReader, require, table
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
ALLOWANCE = 1 << 20  # bytes of tensors beyond the size of the file
# what reading the records of a damaged or hostile file can raise
DAMAGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)


def read_network(path: str | Path) -> Generator:
    """Return the generator of a network file of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL.

    The file is parsed, never unpickled: no name in it is imported, no code in it is compiled, and
    tensors (those of a GPU too) are copied from bytes.  Everything but the generator is ignored.

    Raises:
        DataError: The file cannot be read, names commands, is no pickle of such a network, or its
            parts do not fit together.

    Cost: the file and its generator's tensors in memory.
    """
    path = Path(path).expanduser()
    return _parsed_network(path, _file_bytes(path))


def convert_network(path: str | Path, folder: str | Path) -> Generator:
    """Write the generator of a network file as safetensors and JSON, which later loads read alone.

    Raises:
        DataError: As ``read_network``, or the folder cannot be written.
    """
    path = Path(path).expanduser()
    data = _file_bytes(path)
    generator = _parsed_network(path, data)
    digest = hashlib.sha256(data).hexdigest()
    save_generator(generator, folder, {"source": path.name, "source_sha256": digest})
    return generator


def _file_bytes(path: Path) -> bytes:
    try:
        return read_regular(path, follow=True)
    except OSError as error:
        raise DataError(
            f"{path}: expected a network file, got: {error.strerror}; check the path"
        ) from error


def _parsed_network(path: Path, data: bytes) -> Generator:
    try:
        parsed = parse(data)
    except NotReadable as error:
        raise _not_a_network(path, f"no pickle that can be read ({_short(error)})") from error
    if hostile := hostile_names(parsed.names):
        raise DataError(
            f"{path}: expected a network, got a file that asks to run {hostile}; nothing of it was "
            "run: do not open it with anything else, and fetch the network again from its authors"
        )
    try:
        generator = _generator(parsed.value, NetworkReader(len(data) + ALLOWANCE))
    except NotReadable as error:
        raise _not_a_network(path, str(error)) from error
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {_short(error)}"
        raise _not_a_network(path, f"parts that do not fit together ({reason})") from error
    _check_rendering(generator, path)
    return generator


def _generator(value: Any, network: NetworkReader) -> Generator:
    network.read(_generator_record(value))
    has_both = {"mapping", "synthesis"} <= network.modules.keys()
    require(has_both, f"a {_short(network.modules[''])} without mapping and synthesis")
    tensors = {
        name: x.to(torch.float32) if x.is_floating_point() else x
        for name, x in network.tensors.items()
        if name.startswith(("mapping.", "synthesis."))
    }
    side, channels = int(network.value("img_resolution")), int(network.value("img_channels"))
    # before a list of layers is made for it
    require(side <= MAX_SIDE, f"sizes beyond {MAX_SIDE} pixels")
    common = {"mapping": _mapping(network), "size": side, "channels": channels}
    generator: Generator
    if "synthesis.input" in network.modules:
        generator = StyleGAN3(_stylegan3(network, common), tensors)
    else:
        is_stylegan2 = "synthesis.b4" in network.modules
        require(is_stylegan2, "a synthesis network that is neither StyleGAN2 nor StyleGAN3")
        generator = StyleGAN2(_stylegan2(network, common), tensors)
    num_ws = network.value("num_ws", generator.num_ws)
    is_complete = num_ws == generator.num_ws
    require(is_complete, f"num_ws {num_ws} where its layers need {generator.num_ws}")
    too_much = excess(generator)
    require(too_much is None, f"{too_much}")
    return generator


def _generator_record(value: Any) -> Any:
    """Return the record of G_ema, or the value itself where the file is a bare network."""
    try:
        return table(value)["G_ema"]
    except NotReadable:
        return value
    except KeyError:
        raise NotReadable("a dictionary without G_ema") from None


def _mapping(network: NetworkReader) -> MappingConfig:
    num_layers = 0
    while f"mapping.fc{num_layers}" in network.modules:
        multiplier = network.value(f"mapping.fc{num_layers}.bias_gain", MAPPING_LR)
        require(
            multiplier == MAPPING_LR,
            f"a mapping whose layers have the learning rate multiplier {multiplier}, where "
            f"{MAPPING_LR} is understood",
        )
        num_layers += 1
    classes = int(network.value("c_dim"))
    embedding = "table" if "mapping.embed_proj" in network.modules else "linear"
    return MappingConfig(
        z_dim=int(network.value("z_dim")),
        w_dim=int(network.value("w_dim")),
        classes=classes,
        num_layers=num_layers,
        embedding=embedding if classes else "none",  # type: ignore[arg-type]
    )


def _stylegan3(network: NetworkReader, common: dict[str, Any]) -> StyleGAN3Config:
    width, height = network.value("synthesis.input.size")
    names = network.value("synthesis.layer_names")
    return StyleGAN3Config(
        **common,
        output_scale=float(network.value("synthesis.output_scale")),
        input=InputConfig(
            size=(int(width), int(height)),
            sampling_rate=float(network.value("synthesis.input.sampling_rate")),
            bandwidth=float(network.value("synthesis.input.bandwidth")),
        ),
        layers=tuple(_stylegan3_layer(network, name) for name in names),
    )


def _stylegan3_layer(network: NetworkReader, name: str) -> LayerConfig:
    path = f"synthesis.{name}"
    return LayerConfig(
        name=name,
        is_torgb=bool(network.value(f"{path}.is_torgb")),
        up=int(network.value(f"{path}.up_factor")),
        down=int(network.value(f"{path}.down_factor")),
        padding=tuple(map(int, network.value(f"{path}.padding"))),  # type: ignore[arg-type]
        clamp=_clamp(network.value(f"{path}.conv_clamp")),
    )


def _stylegan2(network: NetworkReader, common: dict[str, Any]) -> StyleGAN2Config:
    for name in network.modules:
        architecture = network.value(f"{name}.architecture", "skip")
        require(
            architecture == "skip" or not name.startswith("synthesis."),
            f"a StyleGAN2 of architecture {_short(architecture)} in {name}, where 'skip' is "
            "understood",
        )
    clamp = _clamp(network.value("synthesis.b4.conv1.conv_clamp", None))
    return StyleGAN2Config(**common, clamp=clamp)


def _clamp(value: Any) -> float | None:
    return None if value is None else float(value)


def _check_rendering(generator: Generator, path: Path) -> None:
    """Render one image: a missing tensor or a wrong shape shows here, not in a run."""
    try:
        with torch.no_grad():
            z = torch.ones(1, generator.config.mapping.z_dim)
            ws = generator.mapping(z, torch.zeros(1, dtype=torch.int64))
            image = generator.forward(ws)
    except KeyError as error:
        raise _not_a_network(path, f"a generator without {_short(error)}") from error
    except (RuntimeError, ConfigError, ValueError, IndexError) as error:
        raise _not_a_network(path, f"tensors that do not fit together ({_short(error)})") from error
    expected = [1, generator.channels, generator.size, generator.size]
    if list(image.shape) != expected:
        raise _not_a_network(path, f"a generator of images {list(image.shape)}, not {expected}")
    if not bool(torch.isfinite(image).all()):
        _log.warning(
            "%s: its first image is not finite; check what the generator draws before using it",
            path,
        )


def _not_a_network(path: Path, got: str) -> DataError:
    return DataError(
        f"{path}: expected a network file of StyleGAN2-ADA, StyleGAN3 or StyleGAN-XL, got {got}; "
        "fetch it again, or choose the .pkl that the authors published"
    )


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 160 else line[:157] + "..."
