"""Settings of the documentation site: ``make docs`` builds it into ``out/docs``."""

import inspect
import os
import re
from pathlib import Path

from sphinx.application import Sphinx

import kdistill

ROOT = Path(__file__).parents[1]
# pages that lie outside docs/, and the file of the site that includes each
INCLUDED = {
    "README.md": "docs/index.md",
    "CONTRIBUTING.md": "docs/project/contributing.md",
    "NUMERICS.md": "docs/project/numerics.md",
    "CHANGELOG.md": "docs/project/changelog.md",
    "benchmarks/README.md": "docs/results/speed.md",
}

project = "kdistill"
author = "The kdistill authors"
version = release = kdistill.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an included page may begin below the first level

highlight_language = "none"  # blocks without a language are commands and formulas

html_theme = "furo"  # takes no font and no script from the network
html_title = f"kdistill {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
toc_object_entries_show_parents = "hide"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80  # a longer signature has a line for every parameter
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Cost", "Symbols", ("Attributes", "params_style")]


def site_links(text: str, source: Path, page: Path) -> str:
    """Return the text of ``source`` with its relative links as ``page`` must write them."""

    def rewritten(match: re.Match[str]) -> str:
        target = os.path.relpath((source.parent / match[1]).resolve(), ROOT)
        path = ROOT / INCLUDED.get(target, target)
        return f"]({os.path.relpath(path, page.parent)}{match[2] or ''})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", rewritten, text)


def read_page(app: Sphinx, docname: str, content: list[str]) -> None:
    """Prepare a Markdown page for the parser: the pages that it includes, and its links."""
    page = Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return

    def included(match: re.Match[str]) -> str:
        source = (page.parent / match[1]).resolve()
        app.env.note_dependency(str(source))
        return site_links(source.read_text(encoding="utf-8"), source, page)

    text = site_links(content[0], page, page)
    content[0] = re.sub(r"^```\{include\} (\S+)\n```$", included, text, flags=re.M)


def read_docstring(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Prepare a docstring for napoleon: titles on their own lines, examples, no stray markup."""
    out: list[str] = []
    in_section = False  # below a title that has text beside it
    for line in lines:
        title = re.match(r"(Cost|References|Symbols): (.+)", line)
        in_section = bool(title) or (in_section and bool(line))
        if title:
            out += [f"{title[1]}:", f"    {title[2][0].upper()}{title[2][1:]}"]
        elif in_section:
            out += [f"    {line.strip()}"]
        else:
            is_example = line.startswith("    ") and out[-1:] == [""]
            if is_example and not out[-2].startswith(" ") and not out[-2].endswith(":"):
                out += ["::", ""]
            out += [line]
    # what stands between double backticks stays, elsewhere * and | are characters
    text = re.sub(r"(``.*?``)|([*|])", lambda m: m[1] or "\\" + m[2], "\n".join(out), flags=re.S)
    lines[:] = text.split("\n")


def read_signature(
    app: Sphinx,
    what: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Leave out the ranges of options, which ``kdistill methods`` shows, and ``<factory>``."""
    if signature and "Annotated[" in signature:
        parameters = inspect.signature(thing).parameters.values()  # type: ignore[arg-type]
        bare = [p.replace(annotation=p.empty) for p in parameters]
        return str(inspect.Signature(bare)), returns
    return signature and signature.replace("<factory>", "..."), returns


def skip_member(
    app: Sphinx, what: str, name: str, thing: object, is_skipped: bool, options: object
) -> bool | None:
    """Leave out what a named tuple says of its own fields; the class describes them."""
    is_alias = str(getattr(thing, "__doc__", "")).startswith("Alias for field number")
    return True if is_alias else None


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-signature", read_signature)
