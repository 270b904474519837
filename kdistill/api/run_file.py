"""A ``RunConfig`` from files: of settings, with flags and overrides, or of a small set."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kdistill import methods
from kdistill.api.run import RunConfig
from kdistill.artifacts import DistilledDataset
from kdistill.config import from_mapping, load_file, parse_overrides
from kdistill.data.builtin import BUILTIN
from kdistill.errors import ConfigError, DataError, did_you_mean
from kdistill.status import note


def read_run(path: Path | None, settings: Mapping[str, Any], overrides: Sequence[str]) -> RunConfig:
    """Return the run that a file and the command line describe together.

    Args:
        path: TOML or JSON file, or the ``config.json`` of an artefact; None reads none.
        settings: Settings of the command line, which win over those of the file; None stands for
            one that was not given.
        overrides: Options of the method as ``KEY=VALUE``, which win over those of the file.

    Raises:
        ConfigError: No data, an unknown key, or one in the wrong table.
    """
    where, options = str(path or "command line"), parse_overrides(overrides)
    loaded = load_file(path) if path else {}
    is_artefact = "artifact" in loaded
    loaded = loaded.get("run", loaded)  # beside an artefact's source and environment
    recorded = loaded.get("options", {}) if isinstance(loaded, dict) else {}
    for key, table in (("run", loaded), ("options", recorded)):
        if not isinstance(table, dict):
            raise ConfigError(
                f"{path}: expected '{key}' to be a table, got {table!r}; write its keys below "
                f"[{key}]"
            )
    if is_artefact:
        _check_no_folders(recorded, options, path)
    chosen = {key: value for key, value in settings.items() if value is not None}
    for key in ("method", "preset"):
        written = loaded.get(key, getattr(RunConfig(), key))
        if recorded and chosen.get(key, written) != written:
            note(
                f"kdistill: the options in {path} are left out: they are for {key} {written}, not "
                f"{chosen[key]}"
            )
            recorded = {}
    merged = {**loaded, **chosen, "options": {**recorded, **options}}
    if not merged.get("data"):
        raise ConfigError(
            "distill: expected data, got none; name a set, a folder or a file, or pass --config"
        )
    _check_keys(merged, where)
    return from_mapping(RunConfig, merged, where=where)


def _check_no_folders(
    recorded: Mapping[str, Any], named: Mapping[str, Any], path: Path | None
) -> None:
    """Raise ConfigError if an artefact, which may be a stranger's, names a folder to write to."""
    inner, inner_named = (table.get("settings") or {} for table in (recorded, named))
    for where, table, ours in (("", recorded, named), ("settings.", inner, inner_named)):
        folder = table.get("experts") if isinstance(table, dict) else None
        if folder is not None and "experts" not in ours:
            raise ConfigError(
                f"{path}: expected no folder to write experts to in the record of a set, got "
                f"{where}experts={folder!r}; name it yourself if you trust it (--set "
                f"{where}experts={folder}), or take the cache (--set {where}experts=none)"
            )


def _check_keys(table: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key that is no setting of a run, and say where an option belongs."""
    method = table.get("method", RunConfig().method)
    settings, options = (
        [entry.name for entry in fields(cls)] for cls in (RunConfig, methods.get(method).config)
    )
    for key in table:
        if key not in settings:
            hint = did_you_mean(key, settings + options)
            if key in options:
                method_key = f"'{key}' of {method}; write it below [options]"
                raise ConfigError(f"{where}: expected a setting of a run, got {method_key}")
            raise ConfigError(f"{where}: expected a setting of a run, got '{key}'; {hint}")


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
