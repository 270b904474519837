"""The data-set card: what a stranger must know about a set, from its own config and metrics.

A card says only what is recorded: a number that was not measured is called "not measured".
``docs/guide/artifacts.md`` lists the entries of config and metrics that are read.

Every text comes from a file or a user, so it is escaped for its place (``kdistill.escape``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kdistill.artifacts.conclusions import (
    conclusions,
    drawn_note,
    is_number,
    random_images,
    rows_above,
    snapshot_conclusions,
)
from kdistill.artifacts.contents import GENERATOR, SetContents, lookup
from kdistill.escape import code, json_text, markdown, one_line, yaml
from kdistill.formatting import byte_count

MAX_TEXT = 1000  # characters of one entry
_CONFIG = ("run", "source", "method", "environment", "sample")  # groups of the config that are read
_METRICS = ("distillation", "evaluation", "snapshots")

# identifiers that the Hugging Face Hub knows; everything else is "other" with the text as its name
_HUB_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "mpl-2.0"),
    *("unlicense", "unknown", "cc0-1.0", "odc-by", "odbl", "pddl", "cc-by-3.0", "cc-by-4.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
}


def card(contents: SetContents, *, files: str = "artefact") -> str:
    """Return the card as Markdown with a YAML header.

    Args:
        contents: The set.
        files: What stands beside the card: ``"artefact"`` (safetensors) or ``"hf"`` (parquet).
    """
    record = {name: contents.config.get(name) for name in _CONFIG}
    record |= {name: contents.metrics.get(name) for name in _METRICS}
    source = _line(record, "source", "name")
    title = source or _line(record, "source", "published") or "Images"
    images = "image" if contents.ipc == 1 else "images"
    title += f" distilled to {contents.ipc} {images} per class"
    stands_for = f" that stands in for the training images of {code(source)}" if source else ""
    sections = [
        _header(contents, title, _line(record, "source", "licence") or "unknown"),
        f"# {markdown(title)}",
        f"A synthetic training set of {len(contents)} images{stands_for}, made so that networks "
        f"can be trained on it instead. The images were {_making(contents)}, not "
        f"photographed.{_warning(record)}",
        "![All images, one row per class](preview.png)",
        f"## What is in it\n\n{_description(contents)}",
        f"## How it was made\n\n{_origin(record)}",
        f"## How good it is\n\n{_quality(record)}{_on_its_way(record)}",
        f"## How to use it\n\n{_usage(contents, files)}",
        f"## Limits\n\n{_limits(contents, _line(record, 'source', 'licence'))}",
    ]
    return "\n\n".join(sections) + "\n"


def _making(contents: SetContents) -> str:
    if contents.recorded("sample") or contents.recorded("run", "method") == "diffusion_gen":
        return "drawn from a generator"
    if GENERATOR not in contents.files:
        return "optimised"
    return f"drawn once from a distilled generator, which stands beside them in `{GENERATOR}`"


def _line(record: Mapping[str, Any], *path: str) -> str:
    """Return an entry as one line, not yet escaped for Markdown; empty where there is none."""
    value = lookup(record, *path)
    return "" if value is None else one_line(value, MAX_TEXT)


def _table(record: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return the table at ``path``, empty where there is none."""
    value = lookup(record, *path)
    return value if isinstance(value, Mapping) else {}


def _header(contents: SetContents, title: str, licence: str) -> str:
    """Return the YAML that the Hugging Face Hub reads."""
    is_known = licence.lower() in _HUB_LICENCES
    name = "" if is_known else f"\nlicense_name: {yaml(licence)}"
    classes = "\n".join(
        f"          '{label}': {yaml(name)}" for label, name in enumerate(contents.classes)
    )
    soft = "\n  - name: label_logits\n    sequence: float32"
    return f"""---
license: {licence.lower() if is_known else "other"}{name}
pretty_name: {yaml(title)}
task_categories:
- image-classification
tags:
- dataset-distillation
- ipc-{contents.ipc}
- kdistill
size_categories:
- {_size_category(len(contents))}
dataset_info:
  features:
  - name: image
    dtype: image
  - name: class_id
    dtype:
      class_label:
        names:
{classes}{"" if contents.label_logits is None else soft}
  splits:
  - name: train
    num_bytes: {contents.nbytes}
    num_examples: {len(contents)}
---"""


def _warning(record: Mapping[str, Any]) -> str:
    """Return a sentence for a set that stands below random images under a network, or nothing."""
    below: dict[str, list[str]] = {}
    for model, scores in _table(record, "evaluation", "scores").items():
        for name in rows_above(scores):
            below.setdefault(random_images(name), []).append(str(model))
    return "".join(
        f" **{images[0].upper()}{images[1:]} train better networks than this set "
        f"({markdown(', '.join(models))}).**"
        for images, models in below.items()
    )


def _description(contents: SetContents) -> str:
    images, (height, width) = contents.images, contents.images.shape[2:]
    outside = float(((images < 0) | (images > 1)).float().mean())
    fewest, most = min(contents.counts), contents.ipc
    labels = "hard (one class per image)"
    if contents.label_logits is not None:
        labels = (
            f"hard, and learned soft labels: softmax of `label_logits` [{len(contents)}, "
            f"{contents.num_classes}]"
        )
    transform = contents.transform
    space = {"standard": "standardised per channel", "zca": "ZCA-whitened", "none": "as they are"}[
        transform.kind
    ]
    if transform.kind == "standard":
        mean, std = (
            ", ".join(f"{float(x):.4f}" for x in transform.state()[name])
            for name in ("mean", "std")
        )
        space += f": mean ({mean}), std ({std})"
    lr = contents.learned_lr
    return _list(
        {
            "images": f"{len(contents)} "
            f"({most if fewest == most else f'{fewest} to {most}'} per class), {contents.channels} "
            f"× {height} × {width}, float32 in pixel space, unclipped",
            "range": f"{float(images.min()):.3f} to {float(images.max()):.3f}; "
            f"{100 * outside:.1f} % of the values lie outside [0, 1]",
            "classes": f"{contents.num_classes}",
            "labels": labels,
            "normalised images": space,
            "size": f"{byte_count(contents.nbytes)} of images and labels in memory, "
            f"{byte_count(images.numel())} of pixels after an 8-bit export",
            "learned learning rate": "" if lr is None else f"{lr:g} (train with it)",
        }
    )


def _origin(record: Mapping[str, Any]) -> str:
    seconds, peak = (
        lookup(record, "distillation", "seconds"),
        lookup(record, "distillation", "peak_bytes"),
    )
    iterations = markdown(_line(record, "distillation", "iterations"))
    stopped = " (stopped early)" if lookup(record, "distillation", "finished") is False else ""
    cost = [
        f"{iterations} iterations{stopped}" if iterations else "",
        f"{seconds:.1f} s" if is_number(seconds) else "",
        f"peak memory {byte_count(peak)}" if is_number(peak) else "",
    ]
    fingerprint, method = _line(record, "source", "fingerprint"), _line(record, "run", "method")
    title = _line(record, "method", "title") or _line(record, "method", "name")
    source = _line(record, "source", "name") or _line(record, "source", "published")
    versions = _table(record, "environment").items()
    listed = _list(
        {
            "method": " ".join(filter(None, [code(method) if method else "", markdown(title)])),
            "paper": markdown(_line(record, "method", "paper")),
            "source data": markdown(source),
            "licence of the source": markdown(_line(record, "source", "licence") or "unknown"),
            "fingerprint of the source": code(fingerprint) if fingerprint else "",
            "normalisation": markdown(_line(record, "run", "normalisation")),
            "seed": markdown(_line(record, "run", "seed")),
            "generator": _generator(record),
            "cost": ", ".join(filter(None, cost)),
            "code": ", ".join(
                f"{markdown(name)} {markdown(version)}" for name, version in versions
            ),
        }
    )
    run = lookup(record, "run")
    if not run:
        return listed
    what = "the set" if lookup(record, "sample") is None else "its generator"
    again = (
        f"The run, as `config.json` has it; `kdistill distill --config config.json` makes {what} "
        "again:"
    )
    return f"{listed}\n\n{again}\n\n```json\n{json_text(run, indent=2)}\n```"


def _generator(record: Mapping[str, Any]) -> str:
    """Return which generator the images were drawn from, and how; empty where there is none."""
    kind, sha256, ipc, seed = (
        _line(record, "sample", *path)
        for path in (("generator", "kind"), ("generator", "sha256"), ("ipc",), ("seed",))
    )
    if not sha256:
        return ""
    drawn = code(f"kdistill sample GENERATOR --ipc {ipc} --seed {seed}")
    return f"{markdown(kind)} {code(sha256)}; {drawn} draws the images again"


def _quality(record: Mapping[str, Any]) -> str:
    rows = lookup(record, "evaluation", "rows")
    rows = [
        row
        for row in (rows if isinstance(rows, (list, tuple)) else ())
        if isinstance(row, Mapping) and is_number(row.get("mean"))
    ]
    if not rows:
        return (
            "Not measured yet: `kdistill evaluate` on this folder fills in this section. Until "
            "then nothing is known about it."
        )
    has_best = any(row.get("best_on_test") for row in rows)
    head = ["training set", "network", "test accuracy %", "seeds", "images", "size"]
    table = [[*head, "best on test %"] if has_best else head, ["---"] * (len(head) + has_best)]
    table += [_quality_row(row, has_best) for row in rows]
    name = _line(record, "evaluation", "data", "name") or _line(record, "source", "name")
    protocol = _line(record, "evaluation", "protocol", "name")
    epochs, precision = (
        markdown(_line(record, "evaluation", "protocol", key)) for key in ("epochs", "precision")
    )
    lr = lookup(record, "evaluation", "protocol", "lr")
    recipe = (
        f"Test images of {code(name or 'the source')}"
        + (f", protocol {code(protocol)}" if protocol else "")
        + (f" ({epochs} epochs)" if epochs else "")
        + (f", {precision}" if precision not in ("", "fp32") else "")
        + "; mean ± standard deviation over networks; the same recipe in every row; the learning "
        f"rate is {f'{lr:g}' if is_number(lr) else 'chosen on held out training images'}."
    )
    if has_best:
        recipe += (
            ' "Best on test" is the best over the epochs of a network, chosen by looking at the '
            "test set; do not compare it with the other column, nor with papers, whose best is "
            "over the iterations of the distillation."
        )
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    return "\n\n".join(filter(None, [lines, recipe, _list_of_conclusions(rows, record)]))


def _on_its_way(record: Mapping[str, Any]) -> str:
    """Return which states of the set were best on the way of its run; empty where none is known."""
    lines = snapshot_conclusions(record.get("snapshots"))
    protocol = _line(record, "snapshots", "protocol", "name")
    means = f" (means over networks, protocol {code(protocol)})" if protocol else ""
    listed = "\n".join(f"- {markdown(line)}" for line in lines)
    return f"\n\nOver the iterations of the distillation{means}:\n\n{listed}" if lines else ""


def _quality_row(row: Mapping[str, Any], has_best: bool) -> list[str]:
    spread = f" ± {100 * row['std']:.2f}" if is_number(row.get("std")) else ""
    cells = [
        str(row.get("name", "?")),
        str(row.get("model", "?")),
        f"{100 * row['mean']:.2f}{spread}{'†' * _did_not_train(row)}",
        str(row.get("seeds", "?")),
        f"{row['images']:,}" if is_number(row.get("images")) else "-",
        byte_count(row["nbytes"]) if is_number(row.get("nbytes")) else "-",
    ]
    if has_best:
        best = row.get("best_on_test")
        is_usable = isinstance(best, (list, tuple)) and bool(best) and all(map(is_number, best))
        cells.append(f"{100 * sum(best) / len(best):.2f}" if is_usable else "-")
    cells = [markdown(cell) for cell in cells]
    if row.get("kind") == "distilled":
        cells[0] = f"**{cells[0]}**"
    return cells


def _did_not_train(row: Mapping[str, Any]) -> bool:
    untrained = row.get("untrained")
    return is_number(untrained) and untrained > 0


def _list_of_conclusions(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> str:
    """Say for every network what follows from the scores, and how far the full data is."""
    lines = []
    if any(map(_did_not_train, rows)):
        lines.append(
            "- † did not train: no better than chance on its own training images, so that it says "
            "nothing about the set."
        )
    lines += [f"- {markdown(note)}." for note in map(drawn_note, rows) if note]
    for model in dict.fromkeys(str(row.get("model")) for row in rows):
        own, name = [row for row in rows if str(row.get("model")) == model], markdown(model)
        distilled = next((row for row in own if row.get("kind") == "distilled"), None)
        if distilled is None:
            continue
        full = next((row for row in own if row.get("name") == "full"), None)
        scores = lookup(record, "evaluation", "scores", model)
        lines += [f"- {name}: {markdown(line)}." for line in conclusions(scores)]
        if full is None:
            lines.append(f"- {name}: distance from the full data not measured.")
        else:
            points = 100 * (full["mean"] - distilled["mean"])
            side = "below" if points >= 0 else "above"
            lines.append(
                f"- {name}: {abs(points):.2f} points {side} the full data "
                f"({100 * full['mean']:.2f} %)."
            )
        if not is_number(lookup(scores, "eight_bit_cost")):
            lines.append(f"- {name}: accuracy lost by an 8-bit export not measured.")
    return "\n".join(lines)


def _usage(contents: SetContents, files: str) -> str:
    is_soft, fresh = contents.label_logits is not None, ""
    if GENERATOR in contents.files:
        fresh = """

Any number of other images is drawn from the generator: `kdistill sample . --ipc 50 --out SAMPLE`,
or `kdistill.DistilledGenerator.from_pretrained(".").sample(ipc=50)`."""
    if files == "hf":
        return f"""```python
from datasets import load_dataset

# columns: image, class_id{", label_logits" if is_soft else ""}
train_set = load_dataset("parquet", data_files="data/*.parquet", split="train")
```

Images are 8-bit PNG here, clipped to [0, 1]; the artefact that they were exported from keeps them
as floats. Test images must go through the normalisation named above."""
    return f"""```python
import kdistill

small = kdistill.DistilledDataset.from_pretrained(".")  # this folder
# normalised images; without normalised=True in pixel space
train_set = small.to_torch(normalised=True{", soft=True" if is_soft else ""})
```

Without kdistill: `safetensors.torch.load_file("data.safetensors")` gives `images`, `labels` and
the normalisation (`transform.*`). Test images must go through the same normalisation. Other
formats: `kdistill export . out --to imagefolder|npz|ddranking|mtt|eccv24|hf`.{fresh}"""


def _limits(contents: SetContents, licence: str) -> str:
    terms = "; its licence is not recorded, so find it out first."
    if licence and licence != "unknown":
        terms = f" ({markdown(licence)})."
    lines = [
        "It may reproduce what is in the source images, in whole or in part: it is **not "
        "anonymous**.",
        "It stands in for training data of this task and these networks; on other architectures "
        "it usually does worse.",
        "It carries the source's errors and imbalances. Never test on it.",
        f"The terms of the source data apply to it{terms}",
    ]
    if contents.images.min() < 0 or contents.images.max() > 1:
        lines.append("Some pixels lie outside [0, 1] on purpose; 8-bit formats clip them.")
    return "\n".join(f"- {line}" for line in lines)


def _list(lines: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {text}" for name, text in lines.items() if text)


def _size_category(count: int) -> str:
    limits = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M"}
    return next((name for limit, name in limits.items() if count < limit), "n>1M")
