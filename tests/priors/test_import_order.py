"""Every package of priors can be the first one that is imported: none needs another before it."""

import subprocess
import sys
from pathlib import Path

import kdistill

SCRIPT = """
import importlib, os, sys
import torch, numpy  # shared by all of them
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        importlib.import_module(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_every_package_can_be_imported_first():
    root = Path(kdistill.__file__).parent
    packages = [
        ".".join(("kdistill", *path.parent.relative_to(root).parts))
        for path in sorted((root / "priors").rglob("__init__.py"))
    ]
    assert len(packages) > 5
    command = [sys.executable, "-c", SCRIPT, *packages]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root.parent)
    assert done.returncode == 0, done.stderr
