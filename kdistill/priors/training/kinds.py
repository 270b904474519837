"""The kinds of generators that ``kdistill prior train`` makes, in an explicit table."""

from kdistill.priors.training.diffusion_kind import DIFFUSION
from kdistill.priors.training.gan_kind import GAN
from kdistill.priors.training.kind import TrainingKind

KINDS: dict[str, TrainingKind] = {"gan": GAN, "diffusion": DIFFUSION}
