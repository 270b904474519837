"""The card of a converted diffusion model."""

from typing import Any

from kdistill.priors.diffusion.model import DiffusionModel


def card(name: str, model: DiffusionModel, about: dict[str, Any]) -> str:
    """Return the Markdown text of ``README.md``.

    Args:
        name: Name of the folder.
        model: The model.
        about: Source, digests, licence and null class.
    """
    c, s, _ = model.latent_shape
    parameters = sum(x.numel() for x in model.tensors.values())
    digests = "\n".join(f"- `{file}`: `{sha}`" for file, sha in about["source_sha256"].items())
    null = about["null_class"]
    licence = about["licence"] or (
        "not stated at the conversion; that of the source holds for these weights"
    )
    guidance = (
        "guidance is possible"
        if null is not None or model.denoiser.null_condition() is not None
        else "no class of none, so no guidance"
    )
    return f"""# {name}

A diffusion model of images of {model.size}x{model.size} pixels, converted from published weights by
`kdistill prior convert`.

| | |
| --- | --- |
| source | `{about["source"]}` |
| licence | {licence} |
| classes | {model.classes:,} ({guidance}) |
| latents | {c}x{s}x{s} |
| parameters | {parameters:,} |

Take it with `kdistill distill DATA --method ld3m --set prior=FOLDER --set classes=[...]`, where
`classes` are the numbers of its classes that the data's stand for.

sha256 of the source:

{digests}

`config.json` holds the sha256 of every file here; a load compares them.
"""
