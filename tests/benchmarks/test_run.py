from dataclasses import replace

import pytest
import torch

from benchmarks import op_runs, run
from benchmarks.result_rows import COPY, READ, read_rows
from kdistill.testing.cases import Shape, all_cases, case, every_case

CPU = torch.device("cpu")
SMALL = replace(
    case("class_mean_sqdist"), bench_shapes=[Shape(n=19, m=5, f=33, k=3), Shape(n=7, m=3, f=4, k=2)]
)


def benchmark(of, *, check_only=False):
    return list(op_runs.run_op(of, CPU, torch.float32, 0.0, quick=True, check_only=check_only))


def test_every_contestant_is_timed_beside_the_floors():
    results = benchmark(SMALL)
    assert {r.status for r in results} == {"ok"}
    assert {r.shape for r in results} == {"n19_m5_f33_k3"}
    names = {r.backend for r in results if r.metric == "forward_backward_syn"}
    assert names == {"cpu", "cpu without graph", "per-class loop", "index_add", COPY, READ}
    assert all(r.percent_of_copy == pytest.approx(100) for r in results if r.backend == COPY)


def test_a_wrong_peer_gets_no_time():
    def off_by_a_little(*inputs):
        return SMALL.reference(*inputs) * 1.001

    results = benchmark(replace(SMALL, peers={"off by a little": off_by_a_little}))
    theirs = [r for r in results if r.backend == "off by a little"]
    assert theirs
    assert all(
        r.timing is None and r.status.startswith("wrong: off by a little output 0: max-abs error")
        for r in theirs
    )
    assert all(r.status == "ok" for r in results if r.backend != "off by a little")


def test_a_peer_that_fails_is_reported_not_hidden():
    def refuses(*inputs):
        raise NotImplementedError("no such thing here\nand more")

    results = benchmark(replace(SMALL, peers={"refuses": refuses}), check_only=True)
    assert {r.status for r in results if r.backend == "refuses"} == {
        "cannot run: no such thing here"
    }


def test_the_gradient_asked_for_is_the_gradient_timed():
    inputs = SMALL.inputs(SMALL.bench_shapes[0], seed=0)
    contestant = op_runs.contestants(SMALL, CPU)[0]
    assert len(op_runs.bound(SMALL, contestant, inputs, (0, 2))()) == 2
    (only,) = op_runs.bound(SMALL, contestant, inputs, (2,))()
    assert only.shape == inputs[2].shape
    assert op_runs.bound(SMALL, contestant, inputs, ())().shape == ()


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # torch.func.jvp's own doing
def test_both_passes_of_tangents_are_one_contestant_beside_plain_pytorch():
    of = replace(case("norm_act_pool").tangents, bench_shapes=[Shape(n=2, c=9, h=6, w=5, g=0)])
    results = benchmark(of, check_only=True)
    assert {r.op for r in results} == {"norm_act_pool_tangent"}
    assert {r.backend: r.status for r in results} == dict.fromkeys(
        ("cpu", "reference", "forward-over-reverse"), "ok"
    )


def test_a_benchmark_has_one_name():
    names = [of.name for of in every_case()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("of", all_cases(), ids=lambda c: c.name)
def test_every_op_names_metrics_and_bytes(of):
    found = op_runs.metrics(of, CPU)
    assert "forward" in found
    for metric in list(found.values())[1:]:
        assert set(metric.wrt) <= set(of.differentiable)
        assert metric.bytes(of.bench_shapes[0], 4) > 0


def test_a_run_writes_its_rows_and_a_rerun_replaces_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "every_case", lambda: [SMALL])
    before = torch.get_num_threads()
    command = [
        "--op",
        "class_mean_sqdist",
        "--quick",
        "--seconds",
        "0",
        "--threads",
        "1",
        "--output",
        str(tmp_path / "rows.csv"),
    ]
    try:
        assert run.main(command) == 0
        first = read_rows(tmp_path / "rows.csv")
        assert run.main(command) == 0
    finally:
        torch.set_num_threads(before)
    again = read_rows(tmp_path / "rows.csv")
    assert [r.group() for r in again] == [r.group() for r in first]
    assert {r.device for r in again} == {"cpu, 1 thread"}
    assert again[0].command.startswith("python -m benchmarks.run --op class_mean_sqdist")
    assert "% of copy" in capsys.readouterr().out


def test_a_run_that_is_cut_off_loses_no_row(tmp_path, monkeypatch, capsys):
    whole = run.results

    def cut_off(options):
        for number, result in enumerate(whole(options)):
            if number == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(run, "every_case", lambda: [SMALL])
    monkeypatch.setattr(run, "results", cut_off)
    target = tmp_path / "rows.csv"
    command = ["--op", "class_mean_sqdist", "--quick", "--seconds", "0", "--output", str(target)]
    command += ["--threads", str(torch.get_num_threads())]
    with pytest.raises(KeyboardInterrupt):
        run.main(command)
    partial = tmp_path / "rows.partial.csv"
    measured = read_rows(partial)
    assert len(measured) == 3
    with partial.open("a") as file:
        file.write("class_mean_sqdist,cpu,n1")  # killed in the middle of a line
    monkeypatch.setattr(run, "results", lambda options: iter(()))
    assert run.main(command) == 0
    assert read_rows(target) == measured
    assert not partial.exists()
    assert "took 3 rows of a run that was cut off" in capsys.readouterr().err


def test_a_wrong_result_fails_the_command(monkeypatch, capsys):
    broken = replace(SMALL, peers={"broken": lambda *inputs: SMALL.reference(*inputs) + 1})
    monkeypatch.setattr(run, "every_case", lambda: [broken])
    assert (
        run.main(
            ["--op", "class_mean_sqdist", "--check", "--threads", str(torch.get_num_threads())]
        )
        == 1
    )
    assert "results are wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--op", "class_mean"], "did you mean 'class_mean_sqdist'"),
        (["--threads", "0"], "--threads: expected 1 or more, got 0"),
        pytest.param(
            ["--device", "cuda"],
            "this torch sees no GPU",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="with a GPU this is no mistake"
            ),
        ),
    ],
)
def test_a_wrong_argument_is_named(argv, message, capsys):
    with pytest.raises(SystemExit):
        run.main(argv)
    assert message in capsys.readouterr().err


def test_a_benchmark_that_raises_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    def raises(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(run, "every_case", lambda: [SMALL])
    monkeypatch.setitem(run.END_TO_END, "grand", raises)
    target, threads = tmp_path / "rows.csv", str(torch.get_num_threads())
    command = [
        "--op",
        "grand",
        "--op",
        "class_mean_sqdist",
        "--quick",
        "--seconds",
        "0",
        "--threads",
        threads,
    ]
    assert run.main([*command, "--output", str(target)]) == 1
    assert {row.op for row in read_rows(target)} == {"class_mean_sqdist"}
    assert "stopped: RuntimeError: CUDA out of memory" in capsys.readouterr().out


def test_a_kernel_that_its_compiler_refuses_is_a_row():
    class CompilationError(Exception):
        """As Triton's, no RuntimeError."""

    def refuses(*inputs):
        raise CompilationError("at 3:4: out of resources")

    results = benchmark(replace(SMALL, peers={"refuses": refuses}), check_only=True)
    assert {r.status for r in results if r.backend == "refuses"} == {
        "cannot run: at 3:4: out of resources"
    }


def test_a_backend_that_is_not_there_is_a_row(monkeypatch):
    # "cuda" without a GPU and without its emulation stands for a GPU without a build of the kernels
    monkeypatch.setitem(op_runs.AUTOMATIC_ORDER, "cpu", ("cuda",))
    results = list(run.END_TO_END["dm_iteration"](CPU, torch.float32, 0.0, True, True))
    (why,) = {r.status for r in results if r.backend == "cuda"}
    assert why.startswith("cannot run: ") and "expected a backend that can run, got none" in why
