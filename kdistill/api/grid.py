"""The grid of a sweep, and its runs."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from kdistill.api.run import RunConfig
from kdistill.config import from_mapping, merge, parse_overrides, to_mapping
from kdistill.errors import ConfigError
from kdistill.options import MAX_MINUTES, check_options

AXES = tuple(entry.name for entry in fields(RunConfig) if entry.name != "options")
# a comma inside quotes or a list divides nothing
_PARTS = re.compile(r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|[^,])+""")


# one field for every setting of a run, and four of its own
@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a sweep runs: every combination of the values below, for every variant.

    A list is an axis of the grid, anything else one value; an option that is itself a list is
    written as a list of lists.

    Attributes:
        data: What ``load_data`` takes, as text.
        method: As in ``RunConfig``.
        ipc: As in ``RunConfig``.
        seed: As in ``RunConfig``.
        preset: As in ``RunConfig``.
        size: As in ``RunConfig``.
        normalisation: As in ``RunConfig``.
        mirrors: As in ``RunConfig``.
        validation: As in ``RunConfig``.
        options: Options of the method, or axes of them.
        variant: Named changes to all of the above, e.g. ``{"name": "+ mask", "options":
            {"grad_mode": "tesla"}}``; none is one variant without changes.
        evaluation: Settings of ``EvaluationConfig``: ``protocol``, ``models``, ``baselines``,
            ``nets``, ``lr``, and ``eight_bit`` and ``hard_labels``, which cost one more row each.
        max_minutes: Time of each distillation.
    """

    data: Any = ()
    method: Any = "dm"
    ipc: Any = 10
    seed: Any = 0
    preset: Any = "fast"
    size: Any = None
    normalisation: Any = "standard"
    mirrors: Any = None
    validation: Any = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: tuple[Mapping[str, Any], ...] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    max_minutes: Annotated[float | None, MAX_MINUTES] = None

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One point of the grid.

    Attributes:
        folder: Where it is, or will be.
        variant: Its name in tables: that of the variant, or of the method.
        config: What decides its result; ``options`` holds those of the grid only.
        status: ``"planned"``, ``"finished"`` (by this call), ``"there"`` (by an earlier one),
            ``"elsewhere"`` (another process works on it) or ``"failed"``.
        reason: Why it failed.
    """

    folder: Path
    variant: str
    config: RunConfig
    status: str = "planned"
    reason: str = ""

    def __str__(self) -> str:
        run = self.config
        return f"{self.variant}, {run.data}, ipc {run.ipc}, seed {run.seed}"


def plan_runs(grid: Grid, out: Path) -> list[Run]:
    """Return the runs of a grid, checked as far as that is possible without data; equal ones once.

    The seed changes slowest, so that a table of everything, of one seed, is there early; then the
    data.

    Raises:
        ConfigError: Unknown or unfitting settings, two variants of one name, or no data.
    """
    if not grid.data:
        raise ConfigError("sweep: expected data, got none; name one or more sets, folders or files")
    runs: dict[Path, Run] = {}
    for name, settings in _variants(grid):
        where = f"sweep, variant {name}" if name else "sweep"
        for point in _points(settings):
            config = from_mapping(RunConfig, point, where=where)
            variant = name or config.method
            folder = out / _folder_name(variant, config, grid.max_minutes)
            runs.setdefault(folder, Run(folder=folder, variant=variant, config=config))
    configs = [run.config for run in runs.values()]
    seeds, sets = [config.seed for config in configs], [config.data for config in configs]
    return sorted(
        runs.values(), key=lambda run: (seeds.index(run.config.seed), sets.index(run.config.data))
    )


def parse_axes(texts: list[str]) -> dict[str, Any]:
    """Turn ``["seed=0,1", "lr_images=1,10"]`` into the axes of a grid.

    What is no setting of a run is an option of the method.
    """
    table: dict[str, Any] = {}
    for text in texts:
        key, equals, literal = text.partition("=")
        parts = _PARTS.findall(literal) if equals and not literal.lstrip().startswith("[") else []
        axis = parse_overrides([text])
        if len(parts) > 1:
            key = key.strip()
            axis = {key: [parse_overrides([f"{key}={part}"])[key] for part in parts]}
        for name, value in axis.items():
            table = merge(table, {name: value} if name in AXES else {"options": {name: value}})
    return table


def _variants(grid: Grid) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield name and axes of every variant; one without a name where the grid has none."""
    common = {name: getattr(grid, name) for name in (*AXES, "options")}
    if not grid.variant:
        yield None, common
    names = [entry.get("name") for entry in grid.variant]
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name or name in names[:place]:
            raise ConfigError(
                f"sweep: expected a name of its own for every variant, got {name!r}; write name = "
                '"..."'
            )
        changes = {key: value for key, value in grid.variant[place].items() if key != "name"}
        from_mapping(Grid, changes, where=f"sweep, variant {name}")
        unfit = sorted(set(changes) - set(common))
        if unfit:
            raise ConfigError(
                f"sweep, variant {name}: expected settings of a run, got '{unfit[0]}'; set it for "
                "the whole sweep"
            )
        yield name, merge(common, changes)


def _points(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination."""
    options = settings["options"]
    axes = {key: settings[key] for key in AXES} | {
        f"options.{key}": x for key, x in options.items()
    }
    values = [list(x) if isinstance(x, list | tuple) else [x] for x in axes.values()]
    for name, chosen in zip(axes, values, strict=True):
        if not chosen:
            raise ConfigError(
                f"sweep: expected a value for {name}, got an empty list; leave it out"
            )
    for combination in itertools.product(*values):
        run, chosen = combination[: len(AXES)], combination[len(AXES) :]
        yield {
            **dict(zip(AXES, run, strict=True)),
            "options": dict(zip(options, chosen, strict=True)),
        }


def _folder_name(name: str, run: RunConfig, max_minutes: float | None) -> str:
    """Return a name for people, and a digest of every setting: a larger grid does not change it."""
    settings = {
        **to_mapping(run),
        "options": to_mapping(run.method_options),
        "minutes": max_minutes,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    words = f"{Path(run.data).stem or 'data'}-{name}-ipc{run.ipc}-seed{run.seed}"
    return f"{re.sub(r'[^A-Za-z0-9._+-]+', '_', words)[:80].lstrip('.')}-{digest}"
