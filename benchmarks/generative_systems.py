"""The systems of ``benchmarks.generative``: what each runs, and what it begins with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdistill import methods


@dataclass(frozen=True, kw_only=True)
class System:
    """One system of the table.

    Attributes:
        method: Name of the method.
        preset: Its preset.
        options: Its options on top of the preset, which the command does not change.
        prior: Kind of the prior that it needs: ``"gan"``, ``"diffusion"`` or none.
        begins_with: System whose generator it begins with, or none.
        ends_by_time: Whether the minutes of a row end a run; else its iterations do.
    """

    method: str
    preset: str = "fast"
    options: Mapping[str, Any] = field(default_factory=dict)
    prior: str = ""
    begins_with: str = ""
    ends_by_time: bool = True

    @property
    def makes_generator(self) -> bool:
        """Whether the product is a generator, which serves any number of images per class."""
        return methods.get(self.method).family == "generator"


STAGE_1 = "conditional GAN"
MTT = {"objective": "mtt"}
SYSTEMS = {
    "pixels, DM": System(method="dm"),
    "pixels, MTT": System(method="mtt"),
    "GLaD, DM": System(method="glad", prior="gan"),
    "GLaD, MTT": System(method="glad", options=MTT, prior="gan"),
    "H-GLaD, DM": System(method="hglad", prior="gan", ends_by_time=False),
    "LD3M, DM": System(method="ld3m", prior="diffusion"),
    "LD3M, MTT": System(method="ld3m", options=MTT, prior="diffusion"),
    # the paper's trade-off: equal iterations, more steps of the sampler
    **{
        f"LD3M, DM, {steps} steps": System(
            method="ld3m", options={"steps": steps}, prior="diffusion", ends_by_time=False
        )
        for steps in (5, 10, 20)
    },
    STAGE_1: System(method="dim", options={"iterations": 0}, ends_by_time=False),
    "DiM": System(method="dim", begins_with=STAGE_1, ends_by_time=False),
    "global": System(
        method="global_local", preset="global", begins_with=STAGE_1, ends_by_time=False
    ),
    "local": System(method="global_local", preset="local", begins_with=STAGE_1, ends_by_time=False),
    "global and local": System(method="global_local", begins_with=STAGE_1, ends_by_time=False),
    "generation": System(method="diffusion_gen", prior="diffusion", ends_by_time=False),
}
