"""Every command that a page shows can be parsed, and its options and settings exist."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kdistill.api.run import resolve
from kdistill.cli import app
from kdistill.config import parse_overrides
from tests.documentation.pages import PAGES, ROOT, WALK, code_spans, command_lines, page_name

PROGRAM = typer.main.get_command(app)
OWN_MODULE = re.compile(r"(?:python|\.venv/bin/python) -m ((?:benchmarks|tests)(?:\.\w+)+)(.*)")


def words_of(line: str) -> list[str]:
    line = line.removeprefix("kdistill").replace("...", "").replace("…", "")
    return shlex.split(line)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the words name, and the words after it."""
    command: Any = PROGRAM
    while hasattr(command, "commands"):
        assert words, "names no command"
        assert words[0] in command.commands, f"there is no command '{words[0]}'"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def check_options(line: str) -> None:
    """Raise if the command or an option of an excerpt does not exist; arguments may be missing."""
    words = words_of(line)
    if not words or words[0].startswith("-"):
        assert words in ([], ["--help"])
        return
    command, rest = command_of(words)
    if any(word == command.name for word in rest):  # `sweep and compare` in prose
        return
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    unknown = [word for word in rest if word.startswith("-") and word.split("=")[0] not in known]
    assert not unknown, f"'{line}': unknown {unknown}"


def check_settings(line: str) -> None:
    """Raise if a whole command line does not parse, or one of its settings does not exist."""
    command, words = command_of(words_of(line))
    values = command.make_context(command.name, words).params
    if command.name in ("distill", "plan", "experts") and not values.get("config"):
        options = parse_overrides(values["options"])
        resolve(values["method"] or "dm", values["preset"] or "fast", options)
    if command.name == "sweep":
        dry = CliRunner().invoke(app, [*words_of(line), "--dry-run"])
        assert dry.exit_code == 0, f"'{line}': {dry.output}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_command_lines_parse_and_their_settings_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # sweeps read their grids from benchmarks/
    made = {Path(block["new"] or "").stem for block in WALK.finditer(page.read_text())} - {""}
    for line in command_lines(page):
        if made & set(line.split()):
            continue  # test_contributing.py runs it where the method of this name exists
        line = line.removeprefix(".venv/bin/")
        if line.startswith("kdistill "):
            check_settings(line)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_in_sentences_exist(page):
    for span in code_spans(page):
        if re.match(r"kdistill [a-z-]", span) and "|" not in span:
            check_options(span)


def source_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin, f"there is no module {module}"
    folder = Path(spec.origin).parent
    return "".join(path.read_text() for path in folder.glob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_own_modules_and_their_flags_exist(page):
    for span in code_spans(page):
        for module, rest in OWN_MODULE.findall(span):
            source = source_of(module)
            for flag in re.findall(r"--[a-z-]+", rest):
                assert f'"{flag}"' in source, f"'{span}': {module} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for span in code_spans(page):
        if match := re.match(r"make ([a-z-]+)", span):
            assert match[1] in targets, f"'{span}'"
