"""Names and what files say cannot act where they are shown: terminal, Markdown, YAML, JSON."""

import ast
import io
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt
from rich.console import Console
from typer.testing import CliRunner

from kdistill import escape
from kdistill.artifacts import DistilledDataset
from kdistill.artifacts.dataset_card import card
from kdistill.artifacts.image_grids import shortened
from kdistill.cli import app
from kdistill.errors import DataError, did_you_mean
from kdistill.experts import TrajectoryStore
from kdistill.formatting import TextTable
from kdistill.status import status_line

PACKAGE = Path(__file__).parents[1] / "kdistill"
ACTING = "\x1b[2Jgone\x9b1A\r\u202eevil\u2066\u2028\ufeff\x00\x7f"
MARKUP = (
    "<!-- <script>alert(1)</script> [a](http://evil.example) ![p](x) `code` **bold** | cell | <b> "
    "&amp; www.evil.example a@b.c"
)


def acts(text: str) -> bool:
    return bool(
        re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff]", text)
    )


def test_what_acts_on_a_terminal_is_written_out():
    assert escape.printable("a\x1b[31mb\n\u202ec") == "a\\u001b[31mb\n\\u202ec"
    assert escape.one_line(" a\n\tb\x85c \x9b") == "a b c \\u009b"
    assert escape.one_line("x" * 50, 10) == "x" * 10 + "…"
    for kept in ("é | 中文 العربية", "می\u200cخواهم", "\N{FAMILY}", "a\u00a0b"):
        assert escape.printable(kept) == kept
    assert not acts(escape.printable(ACTING)) and escape.printable("\udc80") == "\\udc80"


def test_text_in_markdown_is_no_markup():
    shown = escape.markdown(MARKUP)
    assert (
        "<" not in shown and "http\\:" not in shown and "http:\\/\\/" in shown and "www\\." in shown
    )
    kinds = {
        token.type
        for block in MarkdownIt().parse(f"- {shown}")
        for token in (block, *(block.children or ()))
    }
    blocks = {
        f"{kind}_{end}"
        for kind in ("bullet_list", "list_item", "paragraph")
        for end in ("open", "close")
    }
    assert kinds == {*blocks, "inline", "text"}
    for block in ("- a", "# a", "1. a", "---", "* a", "> a", "~~~", "_a_", "**a**", "+ a"):
        tokens = MarkdownIt().parse(escape.markdown(block))
        assert [token.type for token in tokens] == [
            "paragraph_open",
            "inline",
            "paragraph_close",
        ], block
        assert "".join(token.content for token in tokens[1].children) == block
    plain = "photo_patches, 0.1.0, +1 [-2, 3]* (50 %)"
    assert escape.markdown(plain) == plain
    assert escape.code("a``b`") == "``` a``b` ```" and escape.code("mnist5k") == "`mnist5k`"
    assert not acts(escape.markdown(ACTING))


def test_yaml_and_json_read_back():
    assert json.loads(escape.json_text({"a": ACTING + MARKUP})) == {"a": ACTING + MARKUP}
    assert json.loads(escape.yaml("é\x85\u202e")) == "é\x85\u202e" and not acts(escape.yaml(ACTING))


def test_errors_and_log_lines_are_printable_and_short(caplog):
    error = DataError(f"{ACTING}: expected x, got y; {did_you_mean(ACTING, ['a'])}")
    assert not acts(str(error)) and isinstance(error, ValueError)
    long = str(DataError("a" * 10**6 + "; do this"))
    assert len(long) < 21_000 and long.endswith("; do this")
    logging.getLogger("kdistill").warning("%s: damaged", ACTING)
    assert caplog.records and not acts(caplog.records[-1].getMessage())


def test_commands_say_names_without_what_acts(tmp_path):
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path / "a\x1b[2Jb\u202e")])
    assert shown.exit_code == 2 and not acts(shown.output)
    assert "a\\u001b[2Jb\\u202e; check the path" in shown.output
    with pytest.raises(DataError) as caught:
        TrajectoryStore(tmp_path / "\x1bc")
    assert "\\u001bc" in str(caught.value) and not acts(str(caught.value))


def test_commands_print_through_the_escape_only():
    for path in (PACKAGE / "cli").glob("*.py"):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        names = [ast.unparse(call.func) for call in calls]
        allowed = 1 if path.name == "terminal.py" else 0
        assert names.count("typer.echo") == allowed and not {"print", "typer.secho"} & set(names), (
            f"{path}: print with echo of kdistill.cli.terminal"
        )


def test_a_status_line_says_names_without_what_acts(capsys):
    with status_line(f"checking {ACTING}") as say:
        say(f"{ACTING} a")
    said = capsys.readouterr().err
    assert "checking \\u001b[2J" in said and not acts(said)


def test_tables_show_names_as_they_are():
    columns, rows = ["set", "test %"], [[f"[bold]{ACTING}:smile:[/]\\", "1"], ["b", "2"]]
    table = TextTable(columns=columns, rows=rows, notes=[f"[red]{ACTING}"], left=["set"])
    stream = io.StringIO()
    Console(file=stream, width=300, force_terminal=False).print(table.rich())
    for text in (stream.getvalue(), table.plain()):
        assert not acts(text) and "[bold]" in text and ":smile:[/]\\" in text and "[red]" in text
    table = TextTable(columns=columns, rows=[[MARKUP, "1"]], notes=[MARKUP], left=["set"])
    text = table.markdown()
    assert "<script" not in text and len(re.findall(r"(?<!\\)\|", text)) == 9


def hostile_set(name: str) -> DistilledDataset:
    row = {
        "name": name,
        "model": name,
        "kind": "distilled",
        "mean": 0.5,
        "std": "abc",
        "seeds": name,
        "images": 10**400,
    }
    return DistilledDataset(
        images=torch.rand(2, 1, 4, 4),
        labels=torch.tensor([0, 1]),
        classes=[name, "b"],
        config={
            "source": {"name": name, "licence": name, "fingerprint": name},
            "run": {"method": name, "normalisation": name, "seed": name},
            "method": {"title": name, "paper": name},
            "environment": {name: name},
        },
        metrics={
            "distillation": {"iterations": name},
            "evaluation": {
                "rows": [
                    {**row, "best_on_test": "abc"},
                    {**row, "name": "full", "best_on_test": [1, "x"]},
                ],
                "protocol": {"name": name, "epochs": name, "precision": name},
                "data": {"name": name},
                "scores": {
                    name: {
                        "over_random": {name: {"mean": -0.1, "low": -0.2, "high": -0.05}},
                        "ior": -0.1,
                        "random_row": name,
                    }
                },
            },
        },
    )


@pytest.mark.parametrize(
    "name", [ACTING, MARKUP, "```\n# heading\n---\n- x"], ids=["control", "markup", "blocks"]
)
def test_the_card_shows_names_as_they_are(name):
    text = card(hostile_set(name))
    _, head, body = text.split("---\n", 2)
    assert not acts(text)
    kinds = [
        token.type
        for block in MarkdownIt().enable("table").parse(body)
        for token in (block, *(block.children or ()))
    ]
    assert not {"html_block", "html_inline", "link_open", "hr"} & set(kinds)
    assert (
        kinds.count("image") == 1 and kinds.count("heading_open") == 6 and kinds.count("fence") == 2
    )
    assert kinds.count("th_open") == 7 and kinds.count("td_open") == 14  # no cell more
    assert "\n- x" not in head
    shown = body.split("```json\n")[1].split("\n```\n")[0]
    assert json.loads(shown)["method"] == name
    assert f"          '0': {escape.yaml(name)}" in head


def test_long_names_cost_nothing(monkeypatch):
    measured = []

    class Font:
        def getlength(self, text: str) -> float:
            measured.append(len(text))
            return 7.0 * len(text)

    assert shortened("x" * 100_000, Font()).endswith("…")
    assert len(measured) <= 202 and max(measured) <= 202
    name = "m" * 100_000
    set_with_long_names = DistilledDataset(
        images=torch.rand(2, 1, 4, 4),
        labels=torch.tensor([0, 1]),
        classes=["a", "b"],
        config={"source": {"name": name}},
    )
    # the heading does not set the width of the picture
    assert len(set_with_long_names.preview_page().png()) < 100_000
