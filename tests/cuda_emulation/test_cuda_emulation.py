"""The emulation runs correct CUDA kernels right, and says what is wrong with the others."""

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
SEEDS = range(20)


def ramp(n):
    return np.array([i * 7919 % 1001 - 500 for i in range(n)], dtype=np.float64)


def source_lane(kind, lane, argument, width):
    """Which lane a shuffle reads, from the CUDA C++ programming guide, "warp shuffle functions"."""
    group, place = divmod(lane, width)
    if kind == "index":
        return group * width + argument % width
    if kind == "up":
        return lane - argument if place >= argument else lane
    if kind == "down":
        return lane + argument if place + argument < width else lane
    other = lane ^ argument
    return lane if other // width > group else other


# --- correct kernels
#


@pytest.mark.parametrize("dtype", ["float", "double", "int"])
@pytest.mark.parametrize(
    ("n", "blocks", "threads"), [(0, 1, 32), (1, 2, 64), (5000, 3, 256), (4099, 2, 1024)]
)
def test_sums_with_barriers_shuffles_and_shared_memory(emulated, dtype, n, blocks, threads):
    x = ramp(n)
    stride = blocks * threads
    expected = [
        sum(x[i : i + threads].sum() for i in range(b * threads, n, stride)) for b in range(blocks)
    ]
    assert emulated.run(f"sums_{dtype}", n, blocks, threads).values == expected


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (37, 53), (64, 17)])
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_transpose_in_two_dimensional_blocks(emulated, dtype, rows, cols):
    expected = ramp(rows * cols).reshape(rows, cols).T.ravel()
    assert emulated.run(f"transpose_{dtype}", rows, cols).values == expected.tolist()


def test_dynamic_shared_memory(emulated):
    x = np.zeros(320)
    x[:300] = ramp(300)
    assert (
        emulated.run("reverse_tiles", 300, 64).values
        == x.reshape(5, 64)[:, ::-1].ravel()[:300].tolist()
    )


def test_more_than_48_kib_of_dynamic_shared_memory_after_opting_in(emulated):
    n = 100 * 1024 // 4
    assert emulated.run("big_tile", n).values == list(range(n - 1, -1, -1))
    assert "cudaErrorInvalidValue" in emulated.run("big_tile", 227 * 1024 // 4 + 1).error


def test_histogram_with_shared_and_global_atomics(emulated):
    n = 1000
    expected = np.bincount([i * i % 7 for i in range(n)], minlength=7)
    assert emulated.run("histogram", n).values == expected.tolist()


def test_atomics(emulated):
    # sums over 100 threads; product: 3 + 2 * 100; bits of 32 lanes; 100 * 2^33
    expected = [100, 50, 4950, 99, -99, 203, 99, 200, 99, 2**32 - 1, 100 * 2**33]
    assert emulated.run("atomics").values == expected


@pytest.mark.parametrize("width", [32, 8, 2])
@pytest.mark.parametrize("dtype", ["int", "unsigned", "int64", "float", "double"])
def test_shuffles(emulated, dtype, width):
    factor = (
        100003 << 20 if dtype in ("int64", "double") else 100003
    )  # both halves of 8 bytes must travel
    rows = np.array(emulated.run(f"shuffles_{dtype}", width).values).reshape(4, 64)
    for row, (kind, argument) in zip(
        rows, [("index", None), ("up", 3), ("down", 5), ("xor", 6)], strict=True
    ):
        for thread in range(64):
            warp, lane = divmod(thread, 32)
            source = source_lane(
                kind, lane, thread * 3 + 1 if argument is None else argument, width
            )
            assert row[thread] == (warp * 32 + source) * factor, (kind, thread)


def test_votes(emulated):
    rows = np.array(emulated.run("votes").values).reshape(6, 64)
    threads = np.arange(64)
    ballot = [
        sum(1 << lane for lane in range(32) if (32 * warp + lane) % 3 == 0) for warp in range(2)
    ]
    expected = [
        np.repeat(ballot, 32),
        threads >= 32,
        threads < 32,
        np.full(64, 13),
        np.ones(64),
        np.zeros(64),
    ]
    np.testing.assert_array_equal(rows, expected)


def test_masks_of_half_a_warp(emulated):
    expected = np.repeat(np.arange(64).reshape(4, 16).sum(1), 16)
    assert emulated.run("half_warps").values == expected.tolist()


def test_every_thread_of_every_block_runs_once_with_its_own_indices(emulated):
    assert emulated.run("indices").values == list(range(1, 5 * 3 * 2 * 4 * 3 * 2 + 1))


def test_vectors_constants_bfloat16_and_intrinsics(emulated):
    x = (
        (np.arange(1000) % 37 / 8 - 2).astype(np.float32).reshape(-1, 4)
    )  # short enough that bfloat16 is exact
    out = np.array(emulated.run("vectors", 1000).values).reshape(-1, 4)
    w = x[:, 3].astype(np.float64)
    last = 4 * (np.exp(-w) + 1 / np.sqrt(1 + w * w) + np.maximum(x[:, 0], 0))
    np.testing.assert_array_equal(
        out[:, :3], np.stack([x[:, 0], 2 * np.minimum(x[:, 1], 0.5), 3 * x[:, 2]], 1)
    )
    # four roundings of float32: exp, rsqrt, two sums
    assert np.abs(out[:, 3] - last).max() <= 4 * np.finfo(np.float32).eps * last.max()


def test_every_block_finds_nan_in_shared_memory(emulated):
    blocks = 5
    static, of_function, dynamic, misalignment = (
        np.array(emulated.run("unwritten", blocks).values).reshape(2, 4, blocks).swapaxes(0, 1)
    )
    assert np.isnan(static).all() and np.isnan(of_function).all() and np.isnan(dynamic).all()
    assert (misalignment == 0).all()


def test_shared_memory_is_found_without_symbols(plain):
    shutil.copy(plain.folder / "emulated", plain.folder / "stripped")
    subprocess.run(["strip", "-s", str(plain.folder / "stripped")], check=True)
    outcome = plain.run("unwritten", 4, program="stripped")
    assert np.isnan(np.array(outcome.values).reshape(2, 4, 4)[:, :3]).all()


@pytest.mark.parametrize(
    "command", [("sums_float", 5000, 3, 256), ("unwritten", 3), ("recover",)], ids=lambda c: c[0]
)
def test_in_a_shared_library(emulated, command):
    inside, outside = emulated.run_in_python(*command), emulated.run(*command)
    assert (inside.status, inside.out) == (0, outside.out), inside.err


def test_launches_from_several_host_threads(emulated):
    rows = emulated.run("threads", 4).rows
    assert rows == [rows[0]] * 4


# --- the order of the fibers
# ------------------------------------------------------------------------------------------------


def test_a_missing_barrier_shows_and_a_present_one_holds(emulated):
    expected = np.roll(ramp(256), -1).tolist()
    assert emulated.run("rotate_with_barrier", len(SEEDS)).rows == [expected] * len(SEEDS)
    assert any(row != expected for row in emulated.run("rotate_without_barrier", len(SEEDS)).rows)


def test_blocks_come_in_no_order(plain):
    assert any(
        plain.run("blocks_in_order", 8, seed=seed).values != list(range(1, 9)) for seed in SEEDS
    )


@pytest.mark.parametrize(
    "command",
    [
        ("sums_float", 5000, 3, 256),
        ("transpose_double", 37, 53),
        ("reverse_tiles", 300, 64),
        ("half_warps",),
    ],
    ids=str,
)
def test_correct_kernels_do_not_depend_on_the_seed(plain, command):
    assert len({plain.run(*command, seed=seed).out for seed in SEEDS}) == 1


def test_a_seed_repeats_the_order(plain):
    outputs = [plain.run("rotate_without_barrier", 1, seed=seed).out for seed in (5, 5, 6)]
    assert outputs[0] == outputs[1] != outputs[2]


def test_the_seed_counts_launches_unless_it_is_given(plain):
    assert plain.run("seeds", 3).values == [0, 1, 2]
    assert plain.run("seeds", 3, seed=17).values == [17, 17, 17]
    assert (
        "KDISTILL_EMULATION_SEED: expected a whole number, got 'many'"
        in plain.run("seeds", 1, seed="many").error
    )


# --- faults
#


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (
            "barrier_in_branch",
            ["all 64 threads of block (0, 0, 0)", "40 at __syncthreads", "24 returned"],
        ),
        ("return_before_barrier", ["block (1, 0, 0)", "60 at __syncthreads", "4 returned"]),
        ("two_barriers", ["got 32 at __syncthreads", ", 32 at __syncthreads"]),
        (
            "missing_lanes",
            [
                "31 at __shfl_down_sync",
                "in warp 1 with mask 0xffffffff, where the lanes 0x00000008 are missing",
            ],
        ),
        ("outside_mask", ["expected the calling lane in the mask"]),
        (
            "warp_and_barrier",
            ["8 at __syncwarp", "the lanes 0xffffff00 are missing", "56 at __syncthreads"],
        ),
    ],
)
def test_threads_that_wait_in_vain_are_reported(emulated, command, parts):
    error = emulated.run(command, seed=17).error
    assert error.startswith(f"error: {command}_kernel: ")
    for part in [*parts, "faulty.cu:"]:
        assert part in error
    assert command == "outside_mask" or "KDISTILL_EMULATION_SEED=17 repeats this order" in error


def test_after_an_error_the_next_launch_is_right(emulated):
    assert emulated.run("recover").rows == [emulated.run("sums_float", 5000, 3, 256).values] * 3


@pytest.mark.parametrize(
    ("grid", "block", "shared", "status"),
    [
        ((1, 1, 1), (1, 1, 1), 48 * 1024, None),
        ((1, 1, 1), (1, 1, 1), 48 * 1024 + 1, "cudaErrorInvalidValue"),
        ((1, 1, 1), (1024, 1, 1), 0, None),
        ((1, 1, 1), (1025, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        ((1, 1, 1), (33, 32, 1), 0, "cudaErrorInvalidConfiguration"),
        ((1, 1, 1), (1, 1, 65), 0, "cudaErrorInvalidConfiguration"),
        ((1, 1, 1), (0, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        ((0, 1, 1), (1, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        ((1, 65535, 1), (1, 1, 1), 0, None),
        ((1, 65536, 1), (1, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        ((1, 1, 65536), (1, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        ((2**31, 1, 1), (1, 1, 1), 0, "cudaErrorInvalidConfiguration"),
    ],
)
def test_launch_limits(plain, grid, block, shared, status):
    outcome = plain.run("any_launch", *grid, *block, shared)
    if status is None:
        assert outcome.values == [1]
    else:
        text = f"{status} ("
        assert (
            text in outcome.error
            and f"grid {grid}" in outcome.error
            and f"{shared} bytes" in outcome.error
        )


def test_static_shared_memory_counts_towards_the_limit(emulated):
    assert emulated.run("static_and_dynamic", 16 * 1024).values == [2] * 32
    assert "cudaErrorInvalidValue" in emulated.run("static_and_dynamic", 16 * 1024 + 4).error


def test_a_write_beyond_dynamic_shared_memory_is_reported(plain, sanitized):
    assert (
        "expected writes inside the 64 bytes of dynamic shared memory"
        in plain.run("past_dynamic", 64).error
    )
    outcome = sanitized.run("past_dynamic", 64)
    assert "use-after-poison" in outcome.err and "past_dynamic_kernel" in outcome.err


@pytest.mark.parametrize(
    ("command", "kind"),
    [("past_static", "global-buffer-overflow"), ("past_stack", "stack-buffer-overflow")],
)
def test_sanitizers_see_into_kernels(sanitized, command, kind):
    outcome = sanitized.run(command, 14)
    assert outcome.status not in (0, 3)
    assert f"{command}_kernel" in outcome.err or "faulty.cu:" in outcome.err
    assert (
        kind in outcome.err or "runtime error" in outcome.err
    )  # ASan's word, or that of UBSan where it comes first


# --- one source
#


@pytest.mark.parametrize("source", ["kernels.cu", "faulty.cu"])
def test_nvcc_compiles_the_same_files(source, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH: the files were compiled by g++ alone")
    command = [
        "nvcc",
        "-std=c++17",
        "-arch=sm_90",
        f"-I{HERE.parents[1] / 'csrc'}",
        f"-I{HERE}",
        "-Werror",
        "all-warnings",
    ]
    done = subprocess.run(
        [*command, "-c", str(HERE / source), "-o", str(tmp_path / "kernels.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_switch_between_fibers_is_cheap(plain):
    first, second = plain.run("measure", 65536, 256, 16).out.splitlines()
    # 15 to 25 ns and about 15 ns per thread on one 2020s server core; the bounds leave room for a
    # busy machine
    assert float(second.split(",")[2].split()[0]) < 300
    assert math.isfinite(float(first.split()[2])) and float(first.split()[2]) < 1000
