"""Which real images stand for a class, how hard each of them is, and in which order they are learnt."""

from kdistill.selection.coresets import SELECTIONS, select
from kdistill.selection.correctly_classified import select_correct
from kdistill.selection.difficulty_scores import NormalisedImages, ScoreSpec, difficulty
from kdistill.selection.ranking import Curriculum, Ranking, quota, rank
from kdistill.selection.score_table import ScoreTable, load_scores

__all__ = [
    "SELECTIONS",
    "Curriculum",
    "NormalisedImages",
    "Ranking",
    "ScoreSpec",
    "ScoreTable",
    "difficulty",
    "load_scores",
    "quota",
    "rank",
    "select",
    "select_correct",
]
