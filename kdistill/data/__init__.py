"""Labelled image sets, loaded from anything; always float32 ``[N, C, H, W]`` in pixel space."""

from kdistill.data.builtin import BUILTIN
from kdistill.data.data_check import DataCheck, check_data
from kdistill.data.image_dataset import ImageDataset, Split, fingerprint
from kdistill.data.load import announce, load_data
from kdistill.data.splits import stratified_split
from kdistill.data.streamed_images import normalised

__all__ = [
    "BUILTIN",
    "DataCheck",
    "ImageDataset",
    "Split",
    "announce",
    "check_data",
    "fingerprint",
    "load_data",
    "normalised",
    "stratified_split",
]
