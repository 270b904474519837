"""Short commands of the pages run for real, on a tiny folder of photographs."""

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from kdistill.cli import app
from tests.documentation.pages import PAGES, code_spans
from tests.documentation.test_commands import words_of

SMALL = "--set iterations=2 --set width=8 --set batch_real=4"
# a command as a page shows it, and what makes it small enough for a test
LINES = {
    "kdistill check photos/": "",
    "kdistill distill photos/ --size 32 --ipc 10 --out out/photos": SMALL,
    "kdistill evaluate out/photos": "--protocol quick --nets 1 --baselines random",
    "kdistill export out/photos out/photos-png --to imagefolder": "",
    "kdistill score photos/ --size 64 --stream": "--set runs=1 --set epochs=1 --set width=4",
    "kdistill methods dm": "",
    "kdistill methods dm --presets": "",
    "kdistill methods hglad": "",
    "kdistill methods --papers": "",
    "kdistill doctor": "",
    "kdistill cache": "",
    "kdistill cache --empty": "",
    "kdistill --help": "",
}


def take_photographs(folder):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(15):
            pixels = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_short_commands_run(tmp_path, monkeypatch):
    shown = {span for page in PAGES for span in code_spans(page)}
    missing = [line for line in LINES if line not in shown]
    assert not missing, f"no page shows {missing} any more"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    take_photographs(tmp_path / "photos")
    for line, more in LINES.items():
        result = CliRunner().invoke(app, words_of(line) + words_of(more))
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert (tmp_path / "out/photos/preview.png").exists()
    assert len(list((tmp_path / "out/photos-png").rglob("*.png"))) == 20
