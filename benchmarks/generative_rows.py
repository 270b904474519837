"""Rows of ``benchmarks.generative``: what was measured of a system, on one network."""

from dataclasses import dataclass

from benchmarks.result_rows import GENERATIVE
from benchmarks.result_rows import RESULTS as FOLDER

RESULTS = FOLDER / GENERATIVE


@dataclass(frozen=True, kw_only=True)
class SystemRow:  # a line of a file: every field is a column
    """Accuracy of one network on one set of one system; numbers are text, empty where unknown.

    ``network`` is ``"same"`` for the protocol's own network and ``"other"`` for the others.
    ``seconds_experts`` stands in the rows of the run that trained them; a prior is a system of its
    own, whose ``seconds_distil`` is the time of its training.
    """

    data: str
    ipc: str
    system: str
    row: str
    seed: str
    network: str
    model: str
    mean: str
    std: str
    validation: str
    nets: str
    iterations: str
    seconds_experts: str
    seconds_distil: str
    seconds_networks: str
    options: str
    protocol: str
    machine: str
    threads: str
    versions: str
    commit: str
    command: str

    @property
    def group(self) -> tuple[str, ...]:
        """What is measured in one go.

        Machines and threads are conditions that a row names, and no part of this: a table is
        measured in parts, which may run on several machines.
        """
        return (self.data, self.ipc, self.system, self.seed, self.protocol)

    @property
    def key(self) -> tuple[str, ...]:
        """What a new measurement replaces."""
        return (*self.group, self.row, self.model)
