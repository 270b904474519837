"""Distilled sets on disk: save, load, export, import, and the atomic and checksummed files under them."""

from kdistill.artifacts.artifact_folder import check_output
from kdistill.artifacts.checkpoint import load_checkpoint, save_checkpoint
from kdistill.artifacts.dataset import DistilledDataset
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
