"""The methods, in an explicit table; ``get`` returns one by its name."""

import importlib

from kdistill.errors import ConfigError, did_you_mean
from kdistill.methods.base import (
    FAMILIES,
    DryRun,
    Experts,
    Method,
    MethodConfig,
    Objective,
    Problem,
    Rendering,
    Step,
    by_autograd,
)
from kdistill.methods.calibration import calibrate
from kdistill.methods.distillation import optimize
from kdistill.methods.init import balanced_labels, initial_images

__all__ = [
    "FAMILIES",
    "DryRun",
    "Experts",
    "Method",
    "MethodConfig",
    "Objective",
    "Problem",
    "Rendering",
    "Step",
    "balanced_labels",
    "by_autograd",
    "calibrate",
    "get",
    "initial_images",
    "names",
    "optimize",
]

# name -> module below ``kdistill.methods``, imported when the method is asked for
_MODULES = {
    "datm": "trajectory.datm",
    "dc": "matching.dc",
    "diffusion_gen": "generator.diffusion_gen",
    "dim": "generator.dim",
    "dm": "matching.dm",
    "dsa": "matching.dsa",
    "ftd": "trajectory.ftd",
    "glad": "latent.glad",
    "global_local": "generator.global_local",
    "hglad": "latent.hglad",
    "ld3m": "latent.ld3m",
    "mtt": "trajectory.mtt",
    "pad": "trajectory.pad",
    "tesla": "trajectory.tesla",
}


def names() -> list[str]:
    """Return the names of all methods."""
    return sorted(_MODULES)


def get(name: str) -> Method:
    """Return a method by name.

    Raises:
        ConfigError: The name is unknown; suggests the nearest one.
    """
    if name not in _MODULES:
        raise ConfigError(
            f"method: expected a known name, got {name!r}; {did_you_mean(str(name), names())}"
        )
    method: Method = importlib.import_module(f"{__name__}.{_MODULES[name]}").METHOD
    return method
