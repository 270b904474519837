"""A stage of the GPU check as a command: its arguments, its device, and its exit status."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.gpu_suite.report import Report

Function = Callable[[Report, torch.device, bool], None]


def arguments(argv: list[str] | None, **defaults: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--device", default="auto", help="auto: cuda where torch can use one, else cpu"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest sizes: does every line run?"
    )
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args(argv)


def device_of(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return torch.device(asked)


def main(file: str, function: Function, argv: list[str] | None = None) -> int:
    """Run a stage as a command; exit status 1 if one of its rows failed."""
    options = arguments(argv)
    report = Report(options.out, Path(file).stem)
    with report.trying("the whole stage") as values:
        values["device"] = str(device := device_of(options.device))
        function(report, device, options.tiny)
    return 1 if report.failures else 0
