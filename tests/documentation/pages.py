"""The pages of the documentation, and what stands in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "NUMERICS.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


# in CONTRIBUTING.md, before a block: `path`: or Add to `path` after `line`:
WALK = re.compile(
    r"^(?:`(?P<new>[\w./]+)`"
    r"|Add to `(?P<path>[\w./]+)` after (?P<ticks>`+) ?(?P<line>.*?) ?(?P=ticks)):"
    r"\n\n```\w*\n(?P<text>.*?)^```$",
    flags=re.M | re.S,
)


def page_name(page: Path) -> str:
    """Return the path of a page below the repository's root, for the name of a test."""
    return str(page.relative_to(ROOT))


def fenced(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def command_lines(page: Path) -> list[str]:
    """Return every line of a block of shell commands, without its comment."""
    text = page.read_text()
    blocks = [*fenced(page, ""), *fenced(page, "sh")]
    blocks += re.findall(r"(?<=\n\n)(?:    .*\n)+", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = (line.strip() for block in blocks for line in block.splitlines())
    return [re.sub(r"\s+# .*", "", line) for line in lines if line]


def code_spans(page: Path) -> list[str]:
    """Return what stands between single backticks, and the lines of command blocks."""
    text = re.sub(r"```.*?```|``[^`].*?``", "", page.read_text(), flags=re.S)
    spans = re.findall(r"`([^`]+)`", text)
    return [" ".join(span.split()) for span in spans] + command_lines(page)
