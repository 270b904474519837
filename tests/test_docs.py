"""The examples in README and docs run, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "NUMERICS.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p) and p.name != "README.md"], ids=lambda p: p.name
)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": page.stem}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), scope)


def test_the_five_lines_of_the_readme_run(tmp_path, monkeypatch):
    # the same lines on the smallest set, with a budget: the demo runs them in full
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "README.md")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
