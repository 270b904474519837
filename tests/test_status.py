"""Status lines on a terminal, in a notebook, in a log; and the functions that show them."""

import os
import pty
import subprocess
import sys
import types

import pytest

import kdistill
from kdistill import status
from kdistill.evaluation import Protocol

TINY = {"iterations": 20, "batch_real": 8, "width": 4}


@pytest.fixture(scope="module")
def digits():
    return kdistill.load_data("digits", quiet=True)


def test_a_log_gets_the_first_and_the_last_line(capsys):
    with status.status_line("working") as say:
        for number in range(100):
            say(f"{number} of 100")
    shown = capsys.readouterr()
    assert shown.err == "working  0 of 100\nworking  99 of 100\n" and shown.out == ""


def test_a_line_inside_another_is_shown_after_what_that_one_says(capsys, monkeypatch):
    monkeypatch.setattr(status._Plain, "every_s", 0.0)
    with status.status_line("sweep") as outer:
        outer("1 of 2: dm")
        with status.status_line("distilling") as say:
            say("10/20")
            status.note("a note")
        outer("2 of 2: dm")
    lines = [
        "sweep  1 of 2: dm",
        "sweep  1 of 2: dm: distilling  10/20",
        "a note",
        "sweep  2 of 2: dm",
    ]
    assert capsys.readouterr().err.splitlines() == lines


def test_quiet_ends_lines_and_notes_but_tells_callbacks(capsys):
    told = []
    with (
        status.quietly(),
        status.status_line("working", also=told.append) as say,
        status.quietly(False),
    ):
        say("1 of 2")
        status.note("a note")
    assert capsys.readouterr() == ("", "") and told == ["1 of 2"]


def test_a_notebook_gets_one_output_that_is_replaced(capsys, monkeypatch):
    calls = []

    class Handle:
        def update(self, content, raw):
            calls.append(("update", content))

    def display(content, raw, display_id=False):
        calls.append(("display", content))
        return Handle() if display_id else None

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    monkeypatch.setattr(status._Notebook, "every_s", 0.0)
    with status.status_line("working") as say:
        say("1 of 2")
        say("2 of 2")
        status.note("a note")
    texts = [("display", "working  1 of 2"), ("update", "working  2 of 2"), ("display", "a note")]
    assert calls == [(kind, {"text/plain": text}) for kind, text in texts]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_line_is_replaced_and_cut_at_the_edge():
    code = (
        "from kdistill.status import *\nwith status_line('w') as say:\n"
        " say('x' * 200)\n note('n')\n say('end')"
    )
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "40"},
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    cut = "w  " + "x" * 35 + "…"
    assert shown == f"\r\x1b[2K{cut}\r\x1b[2Kn\r\n\r\x1b[2Kw  end\r\n"


def test_the_public_functions_show_progress_on_stderr_and_quiet_ends_it(digits, tmp_path, capsys):
    protocol = Protocol(name="tiny", width=4, epochs=1, full_epochs=1, nets=1, eight_bit=False)
    for quiet in (False, True):
        seen = []
        small = kdistill.distill(digits, ipc=1, options=TINY, callbacks=[seen.append], quiet=quiet)
        kdistill.evaluate(
            small, digits, protocol=protocol, models="mlp", baselines="random", quiet=quiet
        )
        kdistill.score(
            digits, options={"metrics": "loss", "runs": 1, "epochs": 1, "width": 4}, quiet=quiet
        )
        experts = {
            "experts": str(tmp_path / f"experts {quiet}"),
            "num_experts": 1,
            "max_start_epoch": 1,
            "expert_epochs": 1,
        }
        kdistill.train_experts(digits, options={**experts, "width": 4}, quiet=quiet)
        shown = capsys.readouterr()
        assert [progress.iteration for progress in seen] == [10, 20]
        assert shown.out == ""
        if quiet:
            assert shown.err == ""
        else:
            for words in (
                "distilling  20/20",
                "evaluating  dm (mlp): network 1 of 1",
                "scoring  ",
                "experts: 1 expert to train",
            ):
                assert words in shown.err
