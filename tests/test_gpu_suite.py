"""Every stage of the GPU check on the CPU at its smallest sizes, before it runs on a GPU."""

import os
import stat
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import measurement
from benchmarks import run as benchmarks_run
from kdistill.ops import _capture
from kdistill.testing.cases import case, every_case
from tests.gpu_suite import (
    benchmark_rows,
    build,
    ceilings,
    convolutions,
    counters,
    end_to_end,
    gpu_tests,
    gradient,
    graphs,
    learning,
    profiled,
    replayed,
    sanitizer,
    smoke,
    stage,
    timing,
)
from tests.gpu_suite.report import Report, read_rows

CPU = torch.device("cpu")
FEW = ("step_with_dots", "class_mean_sqdist")


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path, "stage")


def statuses(report):
    return {row["what"]: row["status"] for row in read_rows(report.out)}


def program(folder, name, text):
    """Put a program into a folder, as a tool that is not on this machine would be."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_a_stage_is_a_command_with_an_exit_status(tmp_path):
    def fails(report, device, is_tiny):
        assert (device, is_tiny) == (CPU, True)
        raise RuntimeError("no kernel image is available")

    assert (
        stage.main("some/stage.py", lambda *_: None, ["--out", str(tmp_path), "--device", "cpu"])
        == 0
    )
    assert (
        stage.main("some/broken.py", fails, ["--out", str(tmp_path), "--device", "cpu", "--tiny"])
        == 1
    )
    assert read_rows(tmp_path)[-1]["status"] == "failed: RuntimeError: no kernel image is available"
    assert stage.device_of("auto").type in ("cpu", "cuda")


def test_smoke_runs_every_op_on_every_backend(report):
    assert smoke.run(report, CPU, True, 0, "") is None
    outcomes = statuses(report)
    assert set(outcomes.values()) == {"ok"}
    for of in every_case():
        assert {f"{of.name} reference float32", f"{of.name} reference float64"} <= set(outcomes)


def test_smoke_names_a_wrong_kernel_and_goes_on_in_a_new_process_where_the_context_broke(
    report, monkeypatch
):
    wrong = replace(
        case("step_with_dots"),
        op=lambda *inputs: [x + 1 for x in case("step_with_dots").op(*inputs)],
    )
    monkeypatch.setattr(smoke, "every_case", lambda: [wrong, case("trajectory_loss")])
    assert smoke.run(report, CPU, True, 0, "reference") is None
    outcomes = statuses(report)
    assert outcomes["step_with_dots reference float32"].startswith(
        "failed: ToleranceError: step_with_dots"
    )
    assert outcomes["trajectory_loss reference float64"] == "ok"
    monkeypatch.setattr(smoke, "is_broken", lambda device: True)
    assert smoke.run(report, CPU, True, 0, "reference") == 1
    started = []
    monkeypatch.setattr(smoke.os, "execv", lambda program, command: started.append(command))
    smoke.main(["--out", str(report.out), "--device", "cpu", "--tiny", "--backend", "reference"])
    assert started[0][started[0].index("--first") + 1] == "1"


def test_smoke_runs_its_backends_side_by_side_on_a_gpu(report, monkeypatch):
    started = []

    class Process:
        def __init__(self, command, cwd):
            started.append(command)

        def wait(self):
            return int(len(started) == 4 and started[-1] is started[3])  # one of them fails

    monkeypatch.setattr(smoke.subprocess, "Popen", Process)
    assert smoke.main(["--out", str(report.out), "--device", "cuda", "--parallel", "2"]) == 1
    assert [command[-3:] for command in started] == [
        ["reference", "--share", "0/1"], ["cuda", "--share", "0/1"],
        ["triton", "--share", "0/2"], ["triton", "--share", "1/2"],
    ]  # fmt: skip


def test_the_shares_of_smoke_are_all_of_it(report):
    for part in range(3):
        assert smoke.run(report, CPU, True, 0, "reference", f"{part}/3") is None
    names = [row["what"] for row in read_rows(report.out)]
    assert sorted(names) == sorted(
        {f"{of.name} reference {dtype}" for of in every_case() for dtype in ("float32", "float64")}
    )


def test_the_gradient_is_that_of_autograd_and_a_wrong_one_is_told(report, monkeypatch):
    gradient.stage(report, CPU, True)
    assert statuses(report).pop("float32 in tf32").startswith("skipped")
    assert report.failures == 0
    right = gradient.trajectory_match

    def wrong(*arguments, grad_mode="adjoint", **options):
        match = right(*arguments, grad_mode=grad_mode, **options)
        scaled = match.grad_images * (1 + 1e-6)
        return match if grad_mode == "unroll" else match._replace(grad_images=scaled)

    monkeypatch.setattr(gradient, "trajectory_match", wrong)
    gradient.stage(report, CPU, True)
    assert (
        "expected the gradient of autograd within 1e-09" in statuses(report)["float64, hard labels"]
    )


class NoReads(TorchDispatchMode):
    """Refuses what a recording refuses: here the value that ``graphs.recovers`` reads."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].tolist() == 6.0:
            raise RuntimeError("operation not permitted when stream is capturing")
        return func(*args, **(kwargs or {}))


class Rerun:
    def __init__(self, function, outputs):
        self.function, self.outputs = function, outputs

    def replay(self):
        for old, new in zip(self.outputs, self.function(), strict=True):
            if old is not None:
                old.copy_(new)


def record(function, device):
    with NoReads():
        outputs = function()
    return Rerun(function, outputs), outputs


def test_graphs_are_compared_and_a_recording_that_fails_is_survived(report, monkeypatch):
    monkeypatch.setitem(_capture.RECORDERS, "cpu", record)
    graphs.stage(report, CPU, True)
    assert set(statuses(report).values()) == {"ok"}
    said = next(row["said"] for row in read_rows(report.out) if row["what"].startswith("recovery"))
    assert said.endswith("operation not permitted when stream is capturing")


def test_a_replay_that_keeps_old_values_is_told(report, monkeypatch):
    def stale(function, device):
        recording, outputs = record(function, device)
        first = []

        def replay():
            if first:
                return  # the outputs of the first replay stay
            Rerun.replay(recording)
            first.append(None)

        recording.replay = replay
        return recording, outputs

    monkeypatch.setitem(_capture.RECORDERS, "cpu", stale)
    graphs.stage(report, CPU, True)
    assert "expected replays within" in statuses(report)["a recorded step is a plain one, adjoint"]


def test_times_and_profiles(report, monkeypatch):
    monkeypatch.setattr(measurement, "MIN_ROUNDS", 1)
    cases = [case(name) for name in FEW]
    monkeypatch.setattr(replayed, "every_case", lambda: cases)
    monkeypatch.setattr(replayed, "backends", lambda device: ["cpu", "reference"])
    monkeypatch.setattr(convolutions, "PRECISIONS", {"fp32": ("fp32", torch.float32)})
    monkeypatch.setattr(end_to_end, "PRECISIONS", ("fp32",))
    for module in (ceilings, replayed, convolutions, end_to_end, profiled):
        module.stage(report, CPU, True)
    assert set(statuses(report).values()) == {"ok"}
    rows = {row["what"]: row for row in read_rows(report.out)}
    assert rows["copy of 1 MB"]["gb_per_s"] > 0
    assert rows["NHWC fp32 batch 2 side 4"]["forward_kernels"]
    assert rows["trajectory, batch 2, 2 steps, fp32, recorded"]["kernels_ms"] > 0
    assert 0 < rows["outer step, batch 2, plain"]["busy_percent"] <= 100


def test_busy_time_counts_overlapping_kernels_once():
    kernels = [
        timing.Kernel("a", 0.0, 2.0),
        timing.Kernel("b", 1.0, 3.0),
        timing.Kernel("a", 5.0, 6.0),
    ]
    assert timing.busy_us(kernels) == 4.0
    assert list(timing.by_name(kernels, 1)) == [("a", 2, 3.0)]


def test_rotated_inputs_are_larger_than_a_cache(monkeypatch):
    monkeypatch.setattr(timing, "CACHE_NBYTES", 1000)
    inputs = (torch.zeros(25), 3, [torch.zeros(4)])
    assert timing.nbytes(inputs) == 116
    assert len(timing.copies(inputs, True)) == 2
    assert len(timing.copies(inputs, False)) * 116 > 1000


GPU_TESTS = """
import os, time
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2
@pytest.mark.skip(reason="for a reason")
def test_is_skipped(): pass
def test_ends_its_process(): os._exit(7)
def test_takes_too_long(): time.sleep(60)
def test_comes_last(): pass
"""


def test_a_test_that_crashes_or_hangs_does_not_end_the_others(report):
    (report.out / "test_made_up.py").write_text(GPU_TESTS)
    gpu_tests.run(
        report, 1, ["--rootdir", str(report.out), str(report.out / "test_made_up.py")], seconds=0.5
    )
    outcomes = {what.split("::")[1]: status for what, status in statuses(report).items()}
    assert outcomes.pop("test_passes") == outcomes.pop("test_comes_last") == "ok"
    assert outcomes.pop("test_is_skipped") == "skipped: Skipped: for a reason"
    assert "assert 1 == 2" in outcomes.pop("test_fails")
    assert (
        outcomes.pop("test_ends_its_process")
        == "failed: it ended its process with status 7, or took more than 0.5 s"
    )
    assert (
        outcomes.pop("test_takes_too_long")
        == "failed: it ended its process with status 1, or took more than 0.5 s"
    )
    assert not outcomes


def test_without_a_gpu_its_tests_are_skipped_with_a_reason(report):
    gpu_tests.stage(report, CPU, True)
    assert statuses(report) == {"pytest -m gpu": "skipped: no GPU that torch can use"}


SANITIZER = """
import sys
tool = sys.argv[sys.argv.index("--tool") + 1]
assert "tests.gpu_suite.smoke" in sys.argv
print("========= COMPUTE-SANITIZER")
if tool == "racecheck":
    print("========= Error: Race reported between Write access at step_with_dots_kernel")
    print("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)")
else:
    print("========= ERROR SUMMARY: 0 errors")
"""


def test_the_sanitizers_run_side_by_side_and_their_summary_counts(report, tools):
    program(tools, "compute-sanitizer", SANITIZER)
    sanitizer.stage(report, CPU, True)
    outcomes = statuses(report)
    assert outcomes["memcheck"] == outcomes["initcheck"] == "ok"
    assert outcomes["racecheck"].startswith(
        "failed: AssertionError: Error: Race reported between Write access"
    )


NCU = """
print("==PROF== Connected to process")
columns = ["ID", "Kernel Name", "Block Size", "Grid Size"]
columns += ["gpu__time_duration.sum", "launch__registers_per_thread"]
print(",".join(f'"{column}"' for column in columns))
print('"","","","","nsecond","register/thread"')
print('"0","norm_act_pool_fwd_kernel<float>","(256, 1, 1)","(40, 1, 1)","5120","40"')
"""


def test_counters_are_read_from_the_profiler(report, tools):
    program(tools, "ncu", NCU)
    counters.stage(report, CPU, True)
    row = read_rows(report.out)[-1]
    assert (row["what"], row["ns"], row["registers"]) == (
        "norm_act_pool_fwd_kernel<float>",
        "5120",
        "40",
    )
    counters.run_ops(CPU, True)  # what the profiler would look at


def test_counters_that_the_driver_keeps_to_itself_are_skipped(report, tools):
    program(
        tools,
        "ncu",
        'print("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access the '
        'counters")',
    )
    counters.stage(report, CPU, True)
    assert statuses(report) == {
        "ncu": "skipped: the driver lets administrators alone read counters"
    }


def test_packages_that_are_missing_are_named(report, tools, monkeypatch):
    for name in ("nvcc", "cmake", "ninja"):
        program(tools, name, "")
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name in ("pybind11", "hypothesis") else name,
    )
    build.stage(report, CPU, True, report.out / "built")
    gpu_tests.stage(report, torch.device("cuda"), True)
    expected = {
        "_cuda": "skipped: no pybind11; stages use what is installed",
        "pytest -m gpu": "skipped: hypothesis not installed",
    }
    assert statuses(report) == expected


CMAKE = """
import pathlib, sys
if "--build" not in sys.argv:
    assert "-DKDISTILL_CUDA_ARCHITECTURES=90" in sys.argv
    raise SystemExit
folder = pathlib.Path(sys.argv[sys.argv.index("--build") + 1])
folder.mkdir(parents=True)
(folder / "_cuda.cpython.so").write_text("")
for name, spilled, registers in (("_Z5one_kernelv", 0, 40), ("_Z3two_kernelv", 96, 255)):
    print(f"ptxas info    : Compiling entry function '{name}' for 'sm_90'")
    print(f"ptxas info    : Function properties for {name}")
    spills = f"{spilled} bytes spill stores, {spilled} bytes spill loads"
    print(f"    {spilled} bytes stack frame, {spills}")
    print(f"ptxas info    : Used {registers} registers, used 1 barriers, 128 bytes smem")
"""


def test_the_build_says_which_kernels_spill(report, tools):
    for name in ("nvcc", "ninja"):
        program(tools, name, "")
    program(tools, "cmake", CMAKE)
    build.stage(report, CPU, True, report.out / "built")
    (row,) = read_rows(report.out)
    assert (row["status"], row["kernels"], row["spilling"]) == ("ok", 2, 1)
    assert (
        (report.out / "ptxas.txt")
        .read_text()
        .startswith("255 registers, 96 bytes of stack, 96 spilled: ")
    )
    assert (report.out / "built/native/_cuda.cpython.so").exists()


def test_benchmark_rows_are_written_and_wrong_ones_fail(report, monkeypatch):
    benchmark_rows.main(["--out", str(report.out), "--device", "cpu", "--tiny"])
    assert (report.out / "benchmarks.csv").read_text().count("\n") > 1
    assert set(statuses(report).values()) == {"ok"}
    of = case("step_with_dots")
    broken = replace(of, peers={"broken": lambda *inputs: [x + 1 for x in of.reference(*inputs)]})
    monkeypatch.setattr(benchmarks_run, "every_case", lambda: [broken])
    assert benchmark_rows.main(["--out", str(report.out), "--device", "cpu", "--tiny"]) == 1
    assert "wrong: broken output 0" in statuses(report)["step_with_dots"]


def test_a_real_run_learns_what_the_cpu_learns(report, monkeypatch):
    monkeypatch.setattr(learning, "METHODS", {"dm": {}})
    learning.stage(report, CPU, True)
    (row,) = read_rows(report.out)
    assert row["losses"] == row["losses_cpu"]
    assert row["accuracy"] == row["accuracy_cpu"] > 30
    curves = iter([([2.0, 1.0], 90.0), ([2.1, 1.0], 90.0)])
    monkeypatch.setattr(learning, "curve", lambda *_: next(curves))
    learning.stage(report, CPU, True)
    assert "expected the CPU's curve within" in statuses(report)["dm on digits"]
