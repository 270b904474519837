"""Distilled sets and what stands on the disk: folders, cards, pictures, exports, checkpoints."""

from kdistill.artifacts.artifact_folder import check_output
from kdistill.artifacts.checkpoint import load_checkpoint, save_checkpoint
from kdistill.artifacts.distilled_dataset import DistilledDataset
from kdistill.artifacts.published import import_published
from kdistill.files import write_atomic

__all__ = [
    "DistilledDataset",
    "check_output",
    "import_published",
    "load_checkpoint",
    "save_checkpoint",
    "write_atomic",
]
