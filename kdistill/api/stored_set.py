"""A small set on the disk, and the settings by which its real data can be loaded."""

from pathlib import Path

from kdistill.api.run import RunConfig
from kdistill.artifacts import DistilledDataset
from kdistill.config import from_mapping
from kdistill.data.builtin import BUILTIN
from kdistill.errors import ConfigError, DataError


def stored_set(artefact: Path) -> DistilledDataset | None:
    """Return the set in a folder, or None for a file, which published code left.

    Raises:
        DataError: Nothing is at ``artefact``, or it is damaged.
    """
    if not artefact.exists():
        raise DataError(
            f"evaluate: expected an artefact, got nothing at {artefact}; check the path"
        )
    return DistilledDataset.from_pretrained(artefact) if artefact.is_dir() else None


def run_to_load(
    artefact: Path,
    small: DistilledDataset | None,
    *,
    data: str | None = None,
    size: int | None = None,
) -> RunConfig:
    """Return settings by which the real data of a small set can be loaded.

    Args:
        artefact: Where the set is.
        small: The set; None records nothing.
        data: Other data than the set records.
        size: Another side than the set records.

    Raises:
        ConfigError: The set does not say what it was made from, or that is not there.
    """
    asked = {"data": data, "size": size}
    settings = {key: value for key, value in asked.items() if value is not None}
    if small is not None:
        keys = ("data", "size", "normalisation", "mirrors")
        recorded = {key: small.recorded("run", key) for key in keys}
        settings = {key: x for key, x in recorded.items() if x is not None} | settings
    source = str(settings.get("data") or "")
    if not source:
        raise ConfigError(f"evaluate: expected the real data, got none in {artefact}; pass --data")
    if data is None and source not in BUILTIN and not Path(source).expanduser().exists():
        raise ConfigError(
            f"evaluate: expected data that can be loaded again, got '{source}' in {artefact}; pass "
            "--data"
        )
    return from_mapping(RunConfig, settings, where=str(artefact))
