"""The weights of one network of a diffusers folder: safetensors, whole or in shards.

Files are read here and not by ``from_pretrained``: nothing that a folder says can reach the
network, a pickle or a quantiser, and what is wrong is said in one sentence.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdistill.artifacts.tensors import parse_table
from kdistill.errors import DataError
from kdistill.files import check_plain, open_regular, read_regular
from kdistill.files.safe_files import JSON_LIMIT

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED = "diffusion_pytorch_model.bin"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RESTORE = "copy it from its source again"
# the attention of autoencoders before diffusers 0.15
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_FORMER = re.compile(rf"(.*attentions\.\d+)\.({'|'.join(_FORMER_NAMES)})\.(weight|bias)")


def read_json(path: Path) -> dict[str, Any]:
    """Return the table of a JSON file.

    Raises:
        DataError: It is missing, no regular file, or no JSON.
    """
    try:
        # the folders of a download cache hold links
        data = read_regular(path, limit=JSON_LIMIT, follow=True)
    except OSError as error:
        raise DataError(
            f"{path}: expected a configuration, got: {error.strerror}; {RESTORE}"
        ) from error
    return parse_table(data, path, RESTORE)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a network in float32, by their present names.

    Raises:
        DataError: There are none, only pickles, a shard is missing, or a file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= read_safetensors(file)
    return present_names(tensors)


def present_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names that diffusers has for them now."""
    return {_present_name(name): x for name, x in tensors.items()}


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a network's weights."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / f"{WEIGHTS}.index.json"
    if index.exists():
        return _shards(folder, index)
    if pickles := sorted(path.name for path in folder.glob("*.bin*")):
        raise DataError(
            f"{folder}: expected weights as safetensors, got only the pickle {pickles[0]}, which "
            "is not loaded; convert the model: kdistill prior convert "
            f"{folder.parent} out/converted"
        )
    raise DataError(
        f"{folder}: expected weights in {WEIGHTS}, got none; copy them from the source of the model"
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DataError(f"{index}: expected a weight_map of files, got none; {RESTORE}")
    shards = [folder / check_plain(name, index) for name in sorted(set(map(str, places.values())))]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise DataError(
            f"{folder}: expected {len(shards)} files of weights as {index.name} names them, got no "
            f"{missing[0]}; copy it from the source of the model"
        )
    if odd := [shard.name for shard in shards if shard.suffix != ".safetensors"]:
        raise DataError(f"{index}: expected safetensors files, got {odd[0]}; {RESTORE}")
    return shards


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file in float32.

    Raises:
        DataError: It is missing, cut off or damaged, or holds other than floating-point numbers.
    """
    try:
        open_regular(path, follow=True).close()  # a pipe or a device would block
        tensors = load_file(path)
    except OSError as error:
        raise DataError(
            f"{path}: expected weights, got: {error.strerror or error}; {RESTORE}"
        ) from error
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{path}: expected a whole safetensors file, got one that is damaged or cut off "
            f"({error}); {RESTORE}"
        ) from error
    odd = next((name for name, x in tensors.items() if x.dtype not in FLOATS), None)
    if odd is not None:
        raise DataError(
            f"{path}: expected floating-point weights, got '{odd}' of {tensors[odd].dtype}; "
            "quantised weights are not supported"
        )
    return {name: x.to(torch.float32) for name, x in tensors.items()}


def _present_name(name: str) -> str:
    former = _FORMER.fullmatch(name)
    return f"{former[1]}.{_FORMER_NAMES[former[2]]}.{former[3]}" if former else name


def check_shapes(expected: dict[str, Tensor], tensors: dict[str, Tensor], where: Path) -> None:
    """Refuse tensors that are not those of a network.

    Raises:
        DataError: Names the first tensor that is missing, foreign or of another shape.
    """
    missing = sorted(expected.keys() - tensors.keys())
    foreign = sorted(tensors.keys() - expected.keys())
    if missing or foreign:
        got = f"no '{missing[0]}'" if missing else f"a foreign '{foreign[0]}'"
        raise DataError(
            f"{where}: expected the {len(expected)} tensors that its config.json describes, got "
            f"{got}; configuration and weights are of different versions of the model"
        )
    for name, x in expected.items():
        if x.shape != tensors[name].shape:
            raise DataError(
                f"{where}: expected '{name}' of shape {list(x.shape)} as its config.json "
                f"describes, got {list(tensors[name].shape)}; configuration and weights are of "
                "different versions of the model"
            )
