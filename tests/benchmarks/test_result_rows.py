import json
from dataclasses import replace

import pytest

from benchmarks import readme_tables, result_rows
from benchmarks.result_rows import Row

ROW = Row(
    op="class_mean_sqdist",
    backend="cpu",
    shape="n3",
    dtype="float32",
    metric="forward",
    unit="ms",
    median=2.0,
    p20=1.5,
    p80=2.5,
    n=9,
    status="ok",
    percent_of_copy=80.0,
    machine="some processor, 2 cores, avx2",
    device="cpu, 2 threads",
    torch="2.13.0",
    triton="3.9.0",
    commit="abc1234",
    command="python -m benchmarks.run",
)
LOOP = replace(ROW, backend="per-class loop", median=20.0, percent_of_copy=8.0)
READ = replace(ROW, backend=result_rows.READ, median=1.8, percent_of_copy=90.0)
BROKEN = replace(
    ROW,
    backend="triton",
    status="wrong: max-abs error",
    median=None,
    p20=None,
    p80=None,
    n=0,
    percent_of_copy=None,
)


def test_rows_survive_the_file(tmp_path):
    result_rows.write_rows(tmp_path / "a.csv", [ROW, LOOP, BROKEN])
    assert result_rows.read_rows(tmp_path / "a.csv") == [ROW, LOOP, BROKEN]
    assert result_rows.read_rows(tmp_path / "none.csv") == []


def test_a_rerun_replaces_its_group_in_place():
    other = replace(ROW, metric="forward_backward")
    elsewhere = replace(ROW, machine="another")
    again = [replace(ROW, median=1.0), replace(LOOP, median=11.0)]
    assert result_rows.merge([ROW, LOOP, READ, other, elsewhere], again) == [
        *again,
        other,
        elsewhere,
    ]
    assert result_rows.merge([other], again) == [other, *again]


def test_a_table_shows_the_floor_beside_the_ratio():
    text = readme_tables.table([ROW, LOOP, READ, BROKEN])
    assert "| n3 float32 | forward | **cpu** | 2 ms (1.5 to 2.5), 9 | 80 % | 90 % |  |" in text
    assert "| | | per-class loop | 20 ms (1.5 to 2.5), 9 | 8 % | 9 % | 10.0x faster |" in text
    assert "wrong: max-abs error" in text
    assert "`python -m benchmarks.run`" in text


def test_a_lost_comparison_is_said():
    assert readme_tables.losses([ROW, LOOP, READ]) == []
    (sentence,) = readme_tables.losses([ROW, replace(LOOP, median=1.0)])
    assert "per-class loop is 2.00x faster" in sentence


def test_one_file_per_machine():
    assert (
        result_rows.results_file(ROW.machine, ROW.device).name == "some-processor-2-cores-avx2.csv"
    )
    assert (
        result_rows.results_file(ROW.machine, "NVIDIA H200").name
        == "nvidia-h200-some-processor-2-cores-avx2.csv"
    )


def test_the_committed_tables_are_those_of_the_committed_rows(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(readme_tables.README.read_text())
    readme_tables.write_readme(copy)
    assert copy.read_text() == readme_tables.README.read_text(), (
        "run `python -m benchmarks.run --tables`"
    )


def test_the_faster_kernels_of_a_gpu_are_those_of_the_mean_ratio(tmp_path):
    gpu = replace(ROW, device="NVIDIA H200", backend="cuda", median=2.0)
    backward = replace(gpu, op="norm_act_pool_bwd_tangent", metric="forward_backward")
    rows = [
        *(
            gpu,
            replace(gpu, backend="triton", median=3.0),
            replace(gpu, metric="forward_launch", backend="triton", median=0.1),
        ),
        *(
            replace(gpu, shape="n4"),
            replace(gpu, shape="n4", backend="triton", median=1.0),
        ),  # ratios 1.5 and 0.5: triton
        *(backward, replace(backward, backend="triton", median=4.0)),
        *(
            replace(gpu, op="trajectory_loss"),
            ROW,
            replace(ROW, backend="triton", status="wrong", median=None),
        ),  # no pair
    ]
    wanted = {"NVIDIA H200": {"class_mean_sqdist": "triton", "norm_act_pool": "cuda"}}
    assert result_rows.fastest(rows) == wanted
    result_rows.write_rows(tmp_path / "a.csv", rows)
    result_rows.write_fastest(tmp_path / "fastest.json", tmp_path)
    assert json.loads((tmp_path / "fastest.json").read_text()) == wanted


def test_the_committed_choice_is_that_of_the_committed_rows(tmp_path):
    copy = tmp_path / "fastest.json"
    result_rows.write_fastest(copy)
    assert copy.read_text() == result_rows.FASTEST.read_text(), (
        "run `python -m benchmarks.run --tables`"
    )


def test_rows_of_another_place_are_merged_by_machine(tmp_path):
    gpu = replace(ROW, device="NVIDIA H200", backend="cuda")
    old = replace(gpu, op="softmax_scores")
    results = tmp_path / "results"
    name = result_rows.results_file(ROW.machine, gpu.device).name
    result_rows.write_rows(results / name, [old, replace(gpu, median=9.0)])
    result_rows.write_rows(tmp_path / "benchmarks.csv", [gpu])
    assert result_rows.adopt(tmp_path / "benchmarks.csv", results) == [results / name]
    assert result_rows.read_rows(results / name) == [old, gpu]
    with pytest.raises(SystemExit, match="expected rows of benchmarks"):
        result_rows.adopt(tmp_path / "nothing.csv", results)
