"""What trainings of generators have in common: their kinds, quality, memorisation check, card."""

from kdistill.priors.training.card import card
from kdistill.priors.training.kind import Measured, TrainingKind
from kdistill.priors.training.kinds import KINDS
from kdistill.priors.training.memorisation import Memorisation, memorisation, nearest
from kdistill.priors.training.quality import Quality, QualityCheck

__all__ = [
    "KINDS",
    "Measured",
    "Memorisation",
    "Quality",
    "QualityCheck",
    "TrainingKind",
    "card",
    "memorisation",
    "nearest",
]
