"""What the tests of ``load_data`` share: a small data set, and stand-ins for other libraries."""

import numpy as np
from torch.utils.data import Dataset

from kdistill.data import load_data

N, SIDE = 24, 6


def chw(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 3, 1, 2)


def load(*args, **options):
    return load_data(*args, quiet=True, **options)


class Items(Dataset):
    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


def items(x, y, classes=None):
    return Items([*zip(x, y, strict=True)], classes)


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Value:
    pass


HFImage = type("Image", (), {})  # found by the name of its type, as the real one is


class HuggingFace:
    def __init__(self, columns, features, streamed=False):
        self.columns, self.features, self.column_names = columns, features, list(columns)
        if not streamed:
            self.__class__ = type(
                "Dataset",
                (HuggingFace,),
                {"__len__": lambda self: len(next(iter(self.columns.values())))},
            )

    def __getitem__(self, row):
        return {name: values[row] for name, values in self.columns.items()}
