"""The data-set card: what a stranger must know about a set, from its own config and metrics.

A card says only what is recorded: a number that was not measured is called "not measured".  Read
    from ``config``: ``run``,
``source``, ``method``, ``environment``; from ``metrics``: ``distillation``, ``evaluation``;
``docs/guide/artifacts.md`` has the keys.

Every text comes from a file or a user, so it is escaped for its place (``kdistill.escape``).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kdistill.artifacts.conclusions import conclusions, is_number, random_images, rows_above
from kdistill.escape import code, json_text, markdown, one_line, yaml

if TYPE_CHECKING:
    from kdistill.artifacts.dataset import DistilledDataset

MAX_TEXT = 1000  # characters of one entry

# identifiers that the Hugging Face Hub knows; everything else is "other" with the text as its name
_HUB_LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "gpl-3.0",
    "lgpl-3.0",
    "mpl-2.0",
    "unlicense",
    "unknown",
}
_HUB_LICENCES |= {
    "cc0-1.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "odc-by",
}
_HUB_LICENCES |= {"cc-by-nd-4.0", "odbl", "pddl"}


def card(small: "DistilledDataset", *, files: str = "artefact") -> str:
    """Return the card as Markdown with a YAML header.

    Args:
        small: The set.
        files: What stands beside the card: ``"artefact"`` (safetensors) or ``"hf"`` (parquet).
    """
    config, metrics = _Record(small.config), _Record(small.metrics)
    sections = [
        _header(small, config),
        f"# {markdown(_title(small, config))}\n\n{_opening(small, config, metrics)}",
        "![All images, one row per class](preview.png)",
        "## What is in it\n\n" + _contents(small),
        "## How it was made\n\n" + _origin(config, metrics),
        "## How good it is\n\n" + _quality(config, metrics),
        "## How to use it\n\n" + (_usage_parquet(small) if files == "hf" else _usage(small)),
        "## Limits\n\n" + _limits(small, config),
    ]
    return "\n\n".join(sections) + "\n"


class _Record:
    """Nested metadata in which anything may be missing."""

    def __init__(self, content: Any):
        self.content = content if isinstance(content, Mapping) else {}

    def at(self, *path: str) -> Any:
        """Return the entry at ``path``, or None."""
        value: Any = self.content
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def text(self, *path: str) -> str | None:
        """Return the entry as one line of Markdown without markup of its own, or None where there is none."""
        value = self.raw(*path)
        return None if value is None else markdown(value)

    def table(self, *path: str) -> Mapping[str, Any]:
        """Return the table at ``path``, empty where there is none."""
        value = self.at(*path)
        return value if isinstance(value, Mapping) else {}

    def listed(self, *path: str) -> list[Any]:
        """Return the list at ``path``, empty where there is none."""
        value = self.at(*path)
        return list(value) if isinstance(value, (list, tuple)) else []

    def raw(self, *path: str) -> str | None:
        """Return the entry as one line of text, for what escapes it otherwise, or None where there is none."""
        value = self.at(*path)
        return None if value in (None, "") else one_line(value, MAX_TEXT)


def _header(small: "DistilledDataset", config: _Record) -> str:
    licence = config.raw("source", "licence") or "unknown"
    known = licence.lower() in _HUB_LICENCES
    lines = ["---", f"license: {licence.lower() if known else 'other'}"]
    lines += [] if known else [f"license_name: {yaml(licence)}"]
    lines += [f"pretty_name: {yaml(_title(small, config))}"]
    lines += [
        "task_categories:",
        "- image-classification",
        "tags:",
        "- dataset-distillation",
        f"- ipc-{small.ipc}",
        "- kdistill",
    ]
    lines += [
        "size_categories:",
        f"- {_size_category(len(small))}",
        "dataset_info:",
        "  features:",
        "  - name: image",
        "    dtype: image",
    ]
    lines += ["  - name: class_id", "    dtype:", "      class_label:", "        names:"]
    lines += [f"          '{label}': {yaml(name)}" for label, name in enumerate(small.classes)]
    if small.label_logits is not None:
        lines += ["  - name: label_logits", "    sequence: float32"]
    lines += [
        "  splits:",
        "  - name: train",
        f"    num_bytes: {small.nbytes}",
        f"    num_examples: {len(small)}",
    ]
    return "\n".join([*lines, "---"])


def _title(small: "DistilledDataset", config: _Record) -> str:
    name = config.raw("source", "name") or config.raw("source", "published") or "Images"
    return f"{name} distilled to {small.ipc} {'image' if small.ipc == 1 else 'images'} per class"


def _opening(small: "DistilledDataset", config: _Record, metrics: _Record) -> str:
    name = config.raw("source", "name")
    stands_for = f" that stands in for the training images of {code(name)}" if name else ""
    return (
        f"A synthetic training set of {len(small)} images{stands_for}, made so that networks can "
        "be trained on it instead. "
        f"The images were optimised, not photographed.{_warning(metrics)}"
    )


def _warning(metrics: _Record) -> str:
    """Return a sentence for a set that stands below random images under a network, or nothing."""
    scores = metrics.at("evaluation", "scores")
    below: dict[str, list[str]] = {}
    for model, own in scores.items() if isinstance(scores, Mapping) else ():
        for name in rows_above(own):
            below.setdefault(random_images(name), []).append(str(model))
    said = (
        f"{images} train better networks than this set ({markdown(', '.join(who))})"
        for images, who in below.items()
    )
    return "".join(f" **{line[0].upper()}{line[1:]}.**" for line in said)


def _contents(small: "DistilledDataset") -> str:
    images, (height, width) = small.images, small.images.shape[2:]
    outside = float(((images < 0) | (images > 1)).float().mean())
    space = {"standard": "standardised per channel", "zca": "ZCA-whitened", "none": "as they are"}[
        small.transform.kind
    ]
    counts = (
        f"{small.ipc} per class"
        if len(set(small.counts)) == 1
        else f"{min(small.counts)} to {max(small.counts)} per class"
    )
    labels = "hard (one class per image)"
    if small.label_logits is not None:
        labels = f"hard, and learned soft labels: softmax of `label_logits` [{len(small)}, {small.num_classes}]"
    rows = [
        (
            "images",
            f"{len(small)} ({counts}), {small.channels} × {height} × {width}, float32 in pixel "
            "space, unclipped",
        ),
        (
            "range",
            f"{float(images.min()):.3f} to {float(images.max()):.3f}; {100 * outside:.1f} % of the "
            "values lie outside [0, 1]",
        ),
        ("classes", f"{small.num_classes}"),
        ("labels", labels),
        ("networks see images", f"{space}{_constants(small)}"),
        (
            "size",
            f"{_size(small.nbytes)} of images and labels in memory, {_size(images.numel())} of "
            "pixels after an 8-bit export",
        ),
    ]
    if small.learned_lr is not None:
        rows.append(("learned learning rate", f"{small.learned_lr:g} (train with it)"))
    return _list(rows)


def _constants(small: "DistilledDataset") -> str:
    if small.transform.kind != "standard":
        return ""
    mean, std = (
        ", ".join(f"{float(x):.4f}" for x in small.transform.state()[name])
        for name in ("mean", "std")
    )
    return f": mean ({mean}), std ({std})"


def _origin(config: _Record, metrics: _Record) -> str:
    seconds, peak = metrics.at("distillation", "seconds"), metrics.at("distillation", "peak_bytes")
    cost = [
        f"{seconds:.1f} s" if is_number(seconds) else "",
        f"peak memory {_size(peak)}" if is_number(peak) else "",
    ]
    iterations = metrics.text("distillation", "iterations")
    if iterations:
        cost.insert(
            0,
            f"{iterations} iterations"
            + (" (stopped early)" if metrics.at("distillation", "finished") is False else ""),
        )
    fingerprint, short = config.raw("source", "fingerprint"), config.raw("run", "method")
    method = config.text("method", "title") or config.text("method", "name")
    rows = [
        (
            "method",
            " ".join(filter(None, [code(short) if short else "", method or ""])),
        ),
        ("paper", config.text("method", "paper")),
        ("source data", config.text("source", "name") or config.text("source", "published")),
        ("licence of the source", config.text("source", "licence") or "unknown"),
        ("fingerprint of the source", code(fingerprint) if fingerprint else None),
        ("normalisation", config.text("run", "normalisation")),
        ("seed", config.text("run", "seed")),
        ("cost", ", ".join(filter(None, cost))),
        (
            "code",
            ", ".join(
                f"{markdown(name)} {markdown(value)}"
                for name, value in config.table("environment").items()
            ),
        ),
    ]
    listed = _list([(name, value) for name, value in rows if value])
    run = config.at("run")
    if not run:
        return listed
    shown = json_text(run, indent=2)
    again = "The run, as `config.json` has it; `kdistill distill --config config.json` makes the set again:"
    return f"{listed}\n\n{again}\n\n```json\n{shown}\n```"


def _quality(config: _Record, metrics: _Record) -> str:
    rows = [
        row
        for row in metrics.listed("evaluation", "rows")
        if isinstance(row, Mapping) and is_number(row.get("mean"))
    ]
    if not rows:
        return "Not measured yet: `kdistill evaluate` on this folder fills in this section. Until then nothing is known about it."
    best = any(row.get("best_on_test") for row in rows)
    head = (
        "training set",
        "network",
        "test accuracy %",
        "seeds",
        "images",
        "size",
        *(["best on test %"] if best else []),
    )
    table = _table(head, [_quality_row(row, best) for row in rows])
    protocol, data = (
        metrics.raw("evaluation", "protocol", "name"),
        metrics.raw("evaluation", "data", "name"),
    )
    how = f"Test images of {code(data or config.raw('source', 'name') or 'the source')}"
    how += f", protocol {code(protocol)}" if protocol else ""
    epochs = metrics.text("evaluation", "protocol", "epochs")
    how += f" ({epochs} epochs)" if epochs else ""
    precision = metrics.text("evaluation", "protocol", "precision")
    how += f", {precision}" if precision and precision != "fp32" else ""
    how += "; mean ± standard deviation over networks; the same recipe in every row; the learning rate is "
    lr = metrics.at("evaluation", "protocol", "lr")
    how += f"{lr:g}." if is_number(lr) else "chosen on held out training images."
    if best:
        how += (
            ' "Best on test" is the best over the epochs of a network, chosen by looking at the '
            "test set; do not compare it with "
            "the other column, nor with papers, whose best is over the iterations of the "
            "distillation."
        )
    return "\n\n".join([table, how, *_conclusions(rows, metrics)])


def _quality_row(row: Mapping[str, Any], best: bool) -> tuple[str, ...]:
    spread = f" ± {100 * row['std']:.2f}" if is_number(row.get("std")) else ""
    cells = [
        str(row.get("name", "?")),
        str(row.get("model", "?")),
        f"{100 * row['mean']:.2f}{spread}",
        str(row.get("seeds", "?")),
    ]
    cells += [
        f"{row['images']:,}" if is_number(row.get("images")) else "-",
        _size(row["nbytes"]) if is_number(row.get("nbytes")) else "-",
    ]
    if best:
        values = row.get("best_on_test")
        usable = isinstance(values, (list, tuple)) and bool(values) and all(map(is_number, values))
        cells.append(f"{100 * sum(values) / len(values):.2f}" if usable else "-")
    untrained = row.get("untrained")
    cells[2] += "†" if is_number(untrained) and untrained > 0 else ""
    bold = row.get("kind") == "distilled"
    return tuple(
        f"**{markdown(cell)}**" if bold and i == 0 else markdown(cell)
        for i, cell in enumerate(cells)
    )


def _conclusions(rows: list[Mapping[str, Any]], metrics: _Record) -> list[str]:
    """Say for every network what follows from the scores, and how far the set is from the full data."""
    lines = []
    if any(is_number(row.get("untrained")) and row["untrained"] > 0 for row in rows):
        lines.append(
            "- † did not train: no better than chance on its own training images, so that it says "
            "nothing about the set."
        )
    for model in dict.fromkeys(str(row.get("model")) for row in rows):
        mine, name = [row for row in rows if str(row.get("model")) == model], markdown(model)
        small = next((row for row in mine if row.get("kind") == "distilled"), None)
        if small is None:
            continue
        full = next((row for row in mine if row.get("name") == "full"), None)
        scores = metrics.at("evaluation", "scores", model)
        lines += [f"- {name}: {markdown(line)}." for line in conclusions(scores)]
        if full is None:
            lines.append(f"- {name}: distance from the full data not measured.")
        else:
            points = 100 * (full["mean"] - small["mean"])
            below = f"{points:.2f} points below" if points >= 0 else f"{-points:.2f} points above"
            lines.append(f"- {name}: {below} the full data ({100 * full['mean']:.2f} %).")
        if not is_number(metrics.at("evaluation", "scores", model, "eight_bit_cost")):
            lines.append(f"- {name}: accuracy lost by an 8-bit export not measured.")
    return ["\n".join(lines)] if lines else []


def _usage(small: "DistilledDataset") -> str:
    soft = ", soft=True" if small.label_logits is not None else ""
    return f"""```python
import kdistill

small = kdistill.DistilledDataset.from_pretrained(".")  # this folder
train_set = small.to_torch(normalised=True{soft})  # as networks see the images; without normalised=True in pixel space
```

Without kdistill: `safetensors.torch.load_file("data.safetensors")` gives `images`, `labels` and the normalisation
(`transform.*`). Test images must go through the same normalisation. Other formats:
`kdistill export . out --to imagefolder|npz|ddranking|mtt|eccv24|hf`."""


def _usage_parquet(small: "DistilledDataset") -> str:
    columns = "image, class_id" + (", label_logits" if small.label_logits is not None else "")
    return f"""```python
from datasets import load_dataset

train_set = load_dataset("parquet", data_files="data/*.parquet", split="train")  # columns: {columns}
```

Images are 8-bit PNG here, clipped to [0, 1]; the artefact that they were exported from keeps them as floats. Test images must go
through the normalisation named above."""


def _limits(small: "DistilledDataset", config: _Record) -> str:
    licence = config.text("source", "licence")
    lines = [
        "It may reproduce what is in the source images, in whole or in part: it is **not "
        "anonymous**.",
        "It stands in for training data of this task and these networks; on other architectures it "
        "usually does worse.",
        "It carries the source's errors and imbalances. Never test on it.",
        "The terms of the source data apply to it"
        + (
            f" ({licence})."
            if licence and licence != "unknown"
            else "; its licence is not recorded, so find it out first."
        ),
    ]
    if bool(torch.any((small.images < 0) | (small.images > 1))):
        lines.append("Some pixels lie outside [0, 1] on purpose; 8-bit formats clip them.")
    return "\n".join(f"- {line}" for line in lines)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _list(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in rows)


def _size(nbytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{int(nbytes)} B"


def _size_category(count: int) -> str:
    names = (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
    )
    return next((name for limit, name in names if count < limit), "n>1M")
