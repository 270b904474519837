"""The commands of one run: ``distill`` and ``experts``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kdistill.cli.shared import (
    Device,
    Options,
    Quiet,
    Seed,
    SkipUnreadable,
    Threads,
    Validation,
    _examples,
    _one_sentence,
    as_flags,
    echo,
    echo_wrapped,
)
from kdistill.signals import exit_status


def add_to(app: typer.Typer) -> None:
    """Enter the commands."""
    app.command(
        epilog=_examples(
            "kdistill distill mnist5k --method dm --ipc 10 --out out/digits",
            "kdistill distill photos/ --size 32 --set iterations=1000 --set lr_images=2.0 --out "
            "out/photos --resume",
        )
    )(distill)
    app.command(
        epilog=_examples(
            "kdistill experts mnist5k --method mtt",
            "kdistill experts photos/ --method ftd --preset paper --size 32",
        )
    )(experts)


def distill(
    data: Annotated[
        str | None,
        typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `kdistill methods` (default dm).")] = None,
    ipc: Annotated[int | None, typer.Option(help="Images per class (default 10).")] = None,
    preset: Annotated[
        str | None, typer.Option(help="fast (for CPUs, the default) or paper.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the artefact.")] = Path("out/run"),
    config: Annotated[
        Path | None, typer.Option(help="TOML or JSON file; an artefact's config.json re-runs it.")
    ] = None,
    options: Options = [],
    seed: Seed = None,
    size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    skip_unreadable: SkipUnreadable = False,
    normalisation: Annotated[str | None, typer.Option(help="standard, zca or none.")] = None,
    mirrors: Annotated[
        bool | None, typer.Option(help="Whether images may be mirrored (default: not digits).")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Start from an earlier artefact.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the set or the interrupted run in --out.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop after this time and keep what is there.")
    ] = None,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Also keep the set every so many iterations.")
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the training images held out (default 0.1).")
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Between two checkpoints; a kill loses at most this.")
    ] = 1.0,
    quiet: Quiet = False,
) -> None:
    """Make a small synthetic set from DATA and leave it in a folder."""
    with _one_sentence():
        from kdistill.api.run import Execution, check_run
        from kdistill.api.run import run as carry_out
        from kdistill.config import parse_overrides

        given = {
            "data": data,
            "method": method,
            "ipc": ipc,
            "preset": preset,
            "seed": seed,
            "size": size,
        }
        given |= {"normalisation": normalisation, "validation": validation, "mirrors": mirrors}
        run = _run_config(config, given, parse_overrides(options))
        execution = Execution(
            out=out,
            resume=resume,
            force=force,
            device=device,
            threads=threads,
            max_minutes=max_minutes,
            checkpoint_minutes=checkpoint_minutes,
            snapshot_every=snapshot_every,
            quiet=quiet,
        )
        check_run(run, execution, init)
        images = run.load(quiet=quiet, skip_unreadable=skip_unreadable)
        if not quiet:
            echo_wrapped(f"{run.method}, preset {run.preset}: {_effective(run)}", err=True)
        try:
            small = carry_out(run, images, init=init, execution=execution)
        except KeyboardInterrupt as error:
            early = "before the first iteration; the same command starts again, finished experts are kept"
            echo(f"\nkdistill: interrupted; {as_flags(str(error)) or early}", err=True)
            raise typer.Exit(exit_status(error)) from None
        echo(f"{len(small.images)} images in {out}{_state(small)}; next: kdistill evaluate {out}")


def _state(small: Any) -> str:
    done = small.metrics["distillation"]
    if done["finished"]:
        return ""
    return f", of a run that --max-minutes stopped after {done['iterations']:,} iterations (--resume goes on)"


def _run_config(path: Path | None, given: dict[str, Any], options: dict[str, Any]) -> Any:
    from kdistill.api.run import RunConfig
    from kdistill.config import from_mapping, load_file
    from kdistill.errors import ConfigError

    loaded = load_file(path) if path else {}
    is_artefact = "artifact" in loaded
    loaded = loaded.get(
        "run", loaded
    )  # an artefact's config.json holds the run beside its source and environment
    for key, table in (
        ("run", loaded),
        ("options", loaded.get("options", {}) if isinstance(loaded, dict) else {}),
    ):
        if not isinstance(table, dict):
            raise ConfigError(
                f"{path}: expected '{key}' to be a table, got {table!r}; write its keys below "
                f"[{key}]"
            )
    merged = {**loaded, **{key: value for key, value in given.items() if value is not None}}
    if is_artefact:
        _check_no_folders(loaded.get("options", {}), options, path)
    merged["options"] = {**_options_that_apply(path, loaded, given), **options}
    if not merged.get("data"):
        raise ConfigError(
            "distill: expected data, got none; name a set, a folder or a file, or pass --config"
        )
    _check_keys(merged, str(path or "command line"))
    return from_mapping(RunConfig, merged, where=str(path or "command line"))


def _check_no_folders(options: dict[str, Any], named: dict[str, Any], path: Path | None) -> None:
    """Raise ConfigError if an artefact, which may be a stranger's, names a folder that the run would write to."""
    from kdistill.errors import ConfigError

    inner, inner_named = (table.get("settings") or {} for table in (options, named))
    for where, table, ours in (("", options, named), ("settings.", inner, inner_named)):
        folder = table.get("experts") if isinstance(table, dict) else None
        if folder is not None and "experts" not in ours:
            raise ConfigError(
                f"{path}: expected no folder to write experts to in the record of a set, got "
                f"{where}experts={folder!r}; "
                f"name it yourself if you trust it (--set {where}experts={folder}), or take the "
                f"cache (--set {where}experts=none)"
            )


def _check_keys(table: dict[str, Any], where: str) -> None:
    """Raise ConfigError for a key that is no setting of a run; an option of the method is sent to its table."""
    from dataclasses import fields

    from kdistill import methods
    from kdistill.api.run import RunConfig
    from kdistill.errors import ConfigError, did_you_mean

    method = table.get("method", RunConfig().method)
    settings, options = (
        [entry.name for entry in fields(cls)] for cls in (RunConfig, methods.get(method).config)
    )
    for key in table:
        if key in options and key not in settings:
            raise ConfigError(
                f"{where}: expected a setting of a run, got '{key}' of {method}; write it below "
                "[options]"
            )
        if key not in settings:
            hint = did_you_mean(key, settings + options)
            raise ConfigError(f"{where}: expected a setting of a run, got '{key}'; {hint}")


def _options_that_apply(
    path: Path | None, loaded: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Return the file's options, or none if the command line asks for another method or preset: they are that one's values."""
    from kdistill.api.run import RunConfig

    options: dict[str, Any] = loaded.get("options", {})
    for key in ("method", "preset"):
        asked, there = given[key], loaded.get(key, getattr(RunConfig(), key))
        if options and asked is not None and asked != there:
            echo(
                f"kdistill: the options in {path} are left out: they are for {key} {there}, not "
                f"{asked}",
                err=True,
            )
            return {}
    return options


def _effective(run: Any) -> str:
    from kdistill.options import value_shown

    config = run.method_options
    return ", ".join(
        f"{key}={value_shown(type(config), key, value)}" for key, value in vars(config).items()
    )


def experts(
    data: Annotated[
        str,
        typer.Argument(help="mnist5k, digits, photo-patches, a folder, .npz, .safetensors or .pt."),
    ],
    method: Annotated[str, typer.Option(help="mtt, tesla, ftd, datm or pad.")] = "mtt",
    preset: Annotated[str, typer.Option(help="As for distill.")] = "fast",
    options: Options = [],
    size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    skip_unreadable: SkipUnreadable = False,
    normalisation: Annotated[str, typer.Option(help="standard, zca or none.")] = "standard",
    device: Device = None,
    threads: Threads = None,
    validation: Validation = 0.1,
    quiet: Quiet = False,
) -> None:
    """Train the expert trajectories of a method, or those that are missing (distill does it too)."""
    with _one_sentence():
        from kdistill.api.experts import train_experts_of
        from kdistill.api.resources import use
        from kdistill.api.run import RunConfig
        from kdistill.config import from_mapping, parse_overrides

        settings = {
            "data": data,
            "method": method,
            "preset": preset,
            "size": size,
            "normalisation": normalisation,
            "validation": validation,
            "options": parse_overrides(options),
        }
        config = from_mapping(RunConfig, settings, where="experts")
        config.check()
        use(threads, device)
        images = config.load(quiet=quiet, skip_unreadable=skip_unreadable)
        store = train_experts_of(config, images, device=device, threads=threads, quiet=quiet)
        echo(
            f"{len(store)} experts of {store.epochs} epochs, {store.nbytes / 1e6:.1f} MB in "
            f"{store.folder}"
        )
