"""The library diffusers, imported where a network of it is needed and nowhere else."""

from typing import Any

from kdistill.errors import MissingExtraError


def diffusers_class(name: str) -> Any:
    """Return a class of diffusers.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError(
            "prior: expected the library diffusers for such a diffusion model, got none; "
            "pip install 'kdistill[diffusion]'"
        ) from error
    return getattr(diffusers, name)


def installed_version() -> str:
    """Return the version of diffusers."""
    return str(diffusers_class("__version__"))
