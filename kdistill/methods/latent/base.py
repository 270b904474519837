"""What methods on latents share: an objective and a frozen generator."""

from dataclasses import dataclass
from typing import Annotated

from kdistill.methods.composition import ObjectiveConfig
from kdistill.methods.prior_options import PriorConfig
from kdistill.options import COUNT


@dataclass(frozen=True, kw_only=True)
class LatentConfig(PriorConfig, ObjectiveConfig):  # many fields: each is an option that users set
    """Options of methods whose images are rendered from latents of a frozen generator.

    Attributes:
        chunk: Images that have a graph of the generator at one time: less memory, more time.
    """

    iterations: int = 1000
    chunk: Annotated[int, COUNT] = 10
