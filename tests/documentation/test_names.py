"""Every link, path, module and function that a page names exists."""

import importlib
import re
from pathlib import Path

import pytest

from kdistill import methods
from tests.documentation.pages import PAGES, README, ROOT, WALK, code_spans, page_name

PACKAGES = "artifacts|engine|evaluation|methods|objectives|ops|priors|selection"
FOLDERS = "kdistill|tests|csrc|benchmarks|docs"
API_PAGES = sorted((ROOT / "docs/api").glob("*.rst"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(\s*([^)#:\s]+)(?:#[^)]*)?\s*\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page_name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_anchors_of_links_are_headings(page):
    for target, anchor in re.findall(r"\]\(\s*([^)#:\s]*)#([^)\s]+)\s*\)", page.read_text()):
        text = (page.parent / target if target else page).read_text()
        headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
        anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]
        assert anchor in anchors, f"{page_name(page)} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_exist(page):
    made = {block["new"] for block in WALK.finditer(page.read_text())}
    for span in code_spans(page):
        for path in re.findall(rf"(?:^|(?<=\s))(?:{FOLDERS})/[\w./\-]*\w(?=$|[\s,:;)])", span):
            assert path in made or (ROOT / path).exists(), f"{page_name(page)} names {path}"


def resolve(name: str) -> object:
    """Import the longest module that a dotted name begins with, and get the rest of it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(error.name):
                raise
            continue
        for part in parts[end:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(name)


def dotted_names(page: Path) -> set[str]:
    names = set(re.findall(r"(?<![\w./])kdistill(?:\.[A-Za-z_]\w*)+(?![\w./])", page.read_text()))
    for span in code_spans(page):  # `engine.grad_jvp` in a sentence
        names |= {f"kdistill.{name}" for name in re.findall(rf"^(?:{PACKAGES})\.[\w.]+", span)}
    return names


# the changelog names what is gone
@pytest.mark.parametrize(
    "page", [p for p in PAGES + API_PAGES if p.name != "CHANGELOG.md"], ids=page_name
)
def test_dotted_names_exist(page):
    made = {block["new"] for block in WALK.finditer(page.read_text())}
    for name in sorted(dotted_names(page)):
        if f"{name.replace('.', '/')}.py" in made:
            continue
        try:
            resolve(name)
        except (ModuleNotFoundError, AttributeError) as error:
            raise AssertionError(f"{page_name(page)} names {name}: {error}") from error


def test_every_public_name_is_in_the_api_reference():
    import kdistill

    text = (ROOT / "docs/api/kdistill.rst").read_text()
    modules = {"augment", "engine", "errors", "ops"}
    functions = set(kdistill.__all__) - modules - {"__version__"}
    missing = [name for name in functions if f"kdistill.{name}\n" not in text]
    assert not missing, f"docs/api/kdistill.rst lacks {missing}"
    pages = {page.stem for page in API_PAGES}
    assert modules <= pages
    for module in modules:
        assert f"automodule:: kdistill.{module}\n" in (ROOT / f"docs/api/{module}.rst").read_text()


def test_the_readme_lists_every_method():
    listed = [methods.get(name) for name in methods.names()]
    rows = [
        f"| `{method.name}` | {method.summary} | {title} |"
        for family, title in methods.FAMILIES.items()
        for method in listed
        if method.family == family
    ]
    assert "\n".join(rows) in README.read_text(), "expected these rows:\n" + "\n".join(rows)


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "docs/index.md").read_text()
    for page in [*(ROOT / "docs").rglob("*.md"), *API_PAGES]:
        name = str(page.relative_to(ROOT / "docs").with_suffix(""))
        listed = name == "index" or name.startswith("ops/") or f"\n{name}\n" in contents
        assert listed, f"docs/index.md does not list {name}"


def test_markdown_fits_100_columns():
    for page in PAGES:
        in_code = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            in_code ^= line.lstrip().startswith("```")
            is_exempt = in_code or line.startswith(("|", "    ")) or "://" in line or "](" in line
            assert is_exempt or len(line) <= 100, f"{page_name(page)}:{number}"
