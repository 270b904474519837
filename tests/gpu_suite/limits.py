"""A pytest plugin of the GPU check: a share of the tests, a time limit and a row for each.

A test that runs out of time ends the process with the traceback of every thread; the next process
leaves out what has run."""

import faulthandler
from pathlib import Path

import pytest

from tests.gpu_suite.report import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu check")
    group.addoption("--share", default="0/1", help="part/parts of the tests")
    group.addoption("--seconds", type=float, default=90.0, help="of one test at most")
    group.addoption("--rows", type=Path, help="folder of the rows")
    group.addoption(
        "--begun", type=Path, help="file of the tests that have begun; they are not run again"
    )


def begun(file: Path) -> dict[str, bool]:
    """Return, by name of the tests that have begun, whether they have ended."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {nodeid: what == "ended" for what, nodeid in (line.split(" ", 1) for line in lines)}


class Limits:
    def __init__(self, config: pytest.Config):
        part, parts = config.getoption("--share").split("/")
        self.part, self.parts, self.seconds = int(part), int(parts), config.getoption("--seconds")
        self.report, self.file = (
            Report(config.getoption("--rows"), "gpu_tests"),
            config.getoption("--begun"),
        )
        self.status, self.said = "ok", ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        old = begun(self.file)
        items[:] = [
            item
            for number, item in enumerate(items)
            if number % self.parts == self.part and item.nodeid not in old
        ]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._note("begun", nodeid)
        self.status, self.said = "ok", ""
        faulthandler.dump_traceback_later(self.seconds, exit=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.status = "failed"
            self.said = str(report.longrepr)[-800:]
        elif report.skipped and self.status == "ok":
            self.status = "skipped"
            self.said = (
                report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            )

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.report.row(nodeid, f"{self.status}: {self.said}" if self.said else self.status)
        self._note("ended", nodeid)

    def _note(self, what: str, nodeid: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{what} {nodeid}\n")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--rows"):
        config.pluginmanager.register(Limits(config), "gpu check limits")
