"""Which real images stand for a class, and how hard each of them is."""

from kdistill.selection.baselines import SELECTIONS, select
from kdistill.selection.difficulty import ScoreSpec, difficulty
from kdistill.selection.score_table import ScoreTable, load_scores

__all__ = ["SELECTIONS", "ScoreSpec", "ScoreTable", "difficulty", "load_scores", "select"]
