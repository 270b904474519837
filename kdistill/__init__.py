"""kdistill: dataset distillation as a fused-kernel engine.

    data = kdistill.load_data("mnist5k")
    small = kdistill.distill(data, method="dm", ipc=10, seed=0)
    print(kdistill.evaluate(small, data))
    small.save_pretrained("out")

Importing the package loads neither torch, Triton nor native code; every name below is fetched at
first use.
"""

import importlib
import logging
from typing import Any

from kdistill._version import __version__
from kdistill.escape import clean_record

logging.getLogger("kdistill").addFilter(clean_record)  # before anything logs the name of a file

_HOMES = {
    "compare": "kdistill.api.compare",
    "distill": "kdistill.api.distill",
    "evaluate": "kdistill.api.evaluate",
    "evaluate_snapshots": "kdistill.api.evaluate_snapshots",
    "load_data": "kdistill.data",
    "plan": "kdistill.api.plan",
    "sweep": "kdistill.api.sweep",
    "score": "kdistill.api.score",
    "train_experts": "kdistill.api.experts",
    "train_prior": "kdistill.api.prior",
    "DistilledDataset": "kdistill.artifacts",
    "DistilledGenerator": "kdistill.api.distilled_generator",
}
_MODULES = ("augment", "engine", "errors", "ops")

__all__ = [
    "DistilledDataset",
    "DistilledGenerator",
    "__version__",
    "augment",
    "compare",
    "distill",
    "engine",
    "errors",
    "evaluate",
    "evaluate_snapshots",
    "load_data",
    "ops",
    "plan",
    "score",
    "sweep",
    "train_experts",
    "train_prior",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"kdistill.{name}")
    raise AttributeError(f"module 'kdistill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
