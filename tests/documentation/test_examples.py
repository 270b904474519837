"""The Python examples of README and docs run."""

import pytest

from tests.documentation.pages import PAGES, README, ROOT, fenced, page_name

ELSEWHERE = (README, ROOT / "CONTRIBUTING.md")  # below, and in test_contributing.py


@pytest.mark.parametrize(
    "page", [p for p in PAGES if fenced(p, "python") and p not in ELSEWHERE], ids=page_name
)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": page.stem}
    for number, block in enumerate(fenced(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), scope)


def test_the_five_lines_of_the_readme_run(tmp_path, monkeypatch):
    # the same lines on the smallest set, with a budget: the demo runs them in full
    monkeypatch.chdir(tmp_path)
    (block,) = fenced(README, "python")
    small = block.replace('"mnist5k"', '"digits"').replace(
        "seed=0)", "seed=0, options={'iterations': 10, 'width': 8})"
    )
    small = small.replace(
        "evaluate(small, data)",
        "evaluate(small, data, protocol='quick', nets=1, baselines=('random',))",
    )
    assert small.count("options=") == small.count("nets=1") == small.count('"digits"') == 1
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "out/digits/preview.png").exists()
