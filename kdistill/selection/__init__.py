"""Selections of real images: coresets, difficulty scores, and subsets by difficulty."""

from kdistill.selection.coresets import SELECTIONS, select, select_correct
from kdistill.selection.difficulty_scores import (
    Curriculum,
    Ranking,
    ScoreSpec,
    difficulty,
    quota,
    rank,
)
from kdistill.selection.score_table import ScoreTable, load_scores

__all__ = [
    "SELECTIONS",
    "Curriculum",
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
