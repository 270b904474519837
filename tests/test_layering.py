"""Imports point downwards only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kdistill"

# lowest first; names between two bars are equals, and equals never import each other
LAYERS = (
    "_version escape | errors types formatting signals | status config options keys transforms "
    "files optim _native | cache backends | ops | augment cutmix labels data artifacts | "
    "engine runner | objectives priors selection experts | methods evaluation | api doctor | "
    "cli __init__ testing | __main__"
)
RANK = {name: rank for rank, names in enumerate(LAYERS.split(" | ")) for name in names.split()}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):  # an import inside a function counts too
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "kdistill" and len(parts) > 1 and parts[1] in RANK:
                found.add(parts[1])
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_downwards(path):
    layer = layer_of(path)
    assert layer in RANK, f"{path}: give '{layer}' a place in LAYERS"
    for target in imported_layers(path) - {layer}:
        assert RANK[target] < RANK[layer], f"{layer} must not import {target}: {path}"


def test_only_one_file_imports_the_compiled_modules():
    modules = ("_cpu", "_cuda", "_cuda_emulated")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, (ast.Import, ast.ImportFrom))
                else []
            )
            assert not set(names) & set(modules), (
                f"{path} imports a compiled module; only _native.py may"
            )
