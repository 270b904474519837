"""How the house is built: no circles, nobody's private rooms, nothing large, nothing twice."""

import ast
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kdistill"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_FIELDS = 400, 60, 12
REPEATED_LINES, MAX_REPEATS = 10, 15
OP_ROOMS = ("ops", "backends", "cases")  # one stem per op, on purpose


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(path):
    """Yield every imported dotted name, those inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_behind(name):
    """Return the module of the package that an imported name leads to, or None."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return None if name in ("", "kdistill") else name


def circles(graph):
    """Return the strongly connected components of more than one node (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_circles_are_recognised():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}
    assert circles(graph) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_of_files():
    graph = {
        name: {module_behind(target) for target in imports_of(path)} - {None, name}
        for name, path in MODULES.items()
    }
    assert circles(graph) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_imports_what_is_private_to_another_package(path):
    own = path.parent.relative_to(ROOT).parts
    for name in imports_of(path):
        parts = name.split(".")
        for depth, part in enumerate(parts):
            if parts[0] == "kdistill" and part.startswith("_") and not part.startswith("__"):
                home = tuple(parts[:depth])
                home = home if ".".join(home) not in MODULES or is_package(home) else home[:-1]
                assert own[: len(home)] == home, f"{path}: {name} is private to {'.'.join(home)}"


def is_package(parts):
    return (ROOT.joinpath(*parts) / "__init__.py").exists()


def test_no_two_files_can_be_taken_for_each_other():
    """Exempt are ``base.py`` and the files of one op."""
    stems = Counter(
        path.stem
        for path in FILES
        if path.stem not in ("__init__", "base") and not set(path.parts) & set(OP_ROOMS)
    )
    assert [stem for stem, count in stems.items() if count > 1] == []


def body_lines(function):
    """Return how many lines the statements of a function take, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def has_reason(source, node):
    """Return whether a comment on or above the line of a ``class`` or ``def`` gives a reason."""
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return "#" in source[node.lineno - 1] or source[first - 2].lstrip().startswith("#")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_functions_and_classes_are_small(path):
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= MAX_FILE, f"{path}: {len(lines)} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and not has_reason(lines, node):
            assert body_lines(node) <= MAX_FUNCTION, f"{path}: {node.name} {body_lines(node)} lines"
        if isinstance(node, ast.ClassDef) and not has_reason(lines, node):
            count = sum(isinstance(entry, ast.AnnAssign) for entry in node.body)
            assert count <= MAX_FIELDS, f"{path}: {node.name} has {count} fields and no reason"


def tracked(*patterns):
    listed = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def code_lines(path):
    """Return the lines of a file without blanks and comments."""
    stripped = (line.strip() for line in path.read_text().splitlines())
    return [re.sub(r"\s+(#|//).*$", "", x) for x in stripped if x and not x.startswith(("#", "//"))]


def repeats(files):
    """Return (lines, file, file) of every run of lines that occurs twice and cannot be longer."""
    places = defaultdict(list)
    for name, lines in files.items():
        for start in range(len(lines) - REPEATED_LINES + 1):
            places[tuple(lines[start : start + REPEATED_LINES])].append((name, start))
    found = []
    for starts in places.values():
        for place, (name, start) in enumerate(starts):
            for other, begin in starts[place + 1 :]:
                ours, theirs = files[name], files[other]
                if start and begin and ours[start - 1] == theirs[begin - 1]:
                    continue  # part of a longer run
                pairs = zip(ours[start:], theirs[begin:], strict=False)
                length = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
                found.append((length or min(len(ours) - start, len(theirs) - begin), name, other))
    return sorted(found, reverse=True)


def test_repeats_are_counted():
    lines = [f"line {n}" for n in range(12)]
    assert repeats({"a": ["x", *lines, "y"], "b": ["z", *lines]}) == [(12, "a", "b")]
    assert repeats({"a": lines[:9], "b": lines[:9]}) == []


def test_hardly_anything_stands_twice():
    files = tracked("*.py", "*.cpp", "*.h", "*.cu", "*.cuh")
    if not files:
        pytest.skip("needs the git repository: an unpacked archive has no list of tracked files")
    found = repeats({str(path.relative_to(ROOT)): code_lines(path) for path in files})
    assert len(found) <= MAX_REPEATS, "\n".join(map(str, found))
