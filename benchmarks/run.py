"""Check, then time: `python -m benchmarks.run`.

Every backend and every peer first has to agree with the float64 reference; one that does not gets
the status "wrong" and no time.  The others are timed in turns in one process, beside a copy and a
read of the bytes that the op has to move.  Rows go to benchmarks/results/<machine>.csv, where a
rerun replaces its own, and benchmarks/README.md is made from them.  Every row is on
disk before the next is measured: a run that is cut off loses none.
"""

import argparse
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import provenance, readme_tables, result_rows
from benchmarks.alias_free_layers import run_stylegan3_layer
from benchmarks.generator_layers import run_stylegan2_layer
from benchmarks.gradient_matching import run_dsa_iteration
from benchmarks.growth import run_growth
from benchmarks.iteration import run_dm_iteration
from benchmarks.op_runs import Result, run_op
from benchmarks.scores import run_grand
from benchmarks.trajectory import run_large_batch, run_training_step, run_trajectory_match
from kdistill.errors import did_you_mean
from kdistill.testing.cases import every_case

STOPPED = "stopped"  # status of a benchmark that raised

END_TO_END = {
    "dm_iteration": run_dm_iteration,
    "dsa_iteration": run_dsa_iteration,
    "grand": run_grand,
    "stylegan2_layer": run_stylegan2_layer,
    "stylegan3_layer": run_stylegan3_layer,
    "training_step": run_training_step,
    "trajectory_match": run_trajectory_match,
    "trajectory_large_batch": run_large_batch,
    "trajectory_growth": partial(run_growth, "trajectory_growth"),
    "dm_growth": partial(run_growth, "dm_growth"),
}


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument(
        "--op",
        action="append",
        metavar="NAME",
        help=f"an op, {', '.join(END_TO_END)}; repeat for several; default: all but the growth",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads of all contestants",
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each contestant")
    parser.add_argument(
        "--quick", action="store_true", help="first shape, 0.2 s per contestant, nothing is written"
    )
    parser.add_argument(
        "--check", action="store_true", help="only check, time nothing, write nothing"
    )
    parser.add_argument(
        "--output", type=Path, help="CSV file to write in place of results/<machine>.csv"
    )
    parser.add_argument(
        "--adopt",
        type=Path,
        metavar="CSV",
        help="only merge the rows that --output wrote, then --tables",
    )
    parser.add_argument(
        "--tables",
        action="store_true",
        help="only make benchmarks/README.md from the committed rows",
    )
    options = parser.parse_args(argv)
    known = [case.name for case in every_case()] + list(END_TO_END)
    for name in options.op or ():
        if name not in known:
            parser.error(f"--op: expected a benchmark, got '{name}'; {did_you_mean(name, known)}")
    if options.threads < 1:
        parser.error(f"--threads: expected 1 or more, got {options.threads}; leave it out for all")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a device that is there, got cuda; this torch sees no GPU")
    options.op = options.op or [
        name for name in known if not name.endswith("_growth")
    ]  # minutes of their own
    return options


def results(options: argparse.Namespace) -> Iterator[Result]:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    seconds = min(options.seconds, 0.2) if options.quick else options.seconds
    cases = {case.name: case for case in every_case()}
    for name in options.op:
        benchmark = partial(run_op, cases[name]) if name in cases else END_TO_END[name]
        try:
            yield from benchmark(device, dtype, seconds, options.quick, options.check)
        except Exception as error:  # what ends one benchmark does not end the others
            traceback.print_exc()
            said = " ".join(str(error).split())[:160]
            yield Result(
                name,
                options.device,
                "",
                options.dtype,
                "",
                f"{STOPPED}: {type(error).__name__}: {said}",
            )


def row_of(result: Result, device: torch.device, conditions: dict[str, str]) -> result_rows.Row:
    timing = result.timing
    return result_rows.Row(
        op=result.op,
        backend=result.backend,
        shape=result.shape,
        dtype=result.dtype,
        metric=result.metric,
        unit=result.unit,
        median=timing.median if timing else None,
        p20=timing.p20 if timing else None,
        p80=timing.p80 if timing else None,
        n=timing.n if timing else 0,
        status=result.status,
        percent_of_copy=result.percent_of_copy,
        device=provenance.device_name(device),
        **conditions,
    )


def line(result: Result) -> str:
    label = f"{result.op:<18} {result.shape:<28} {result.dtype:<8} "
    label += f"{result.metric:<22} {result.backend:<24}"
    if result.timing is None:
        return f"{label} {result.status}"
    share = "" if result.percent_of_copy is None else f"  {result.percent_of_copy:5.0f} % of copy"
    t = result.timing
    return f"{label} {t.median:10.4g} {result.unit} ({t.p20:.4g} to {t.p80:.4g}, n {t.n}){share}"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = arguments(argv)
    if options.adopt:
        for target in result_rows.adopt(options.adopt):
            print(f"rows merged into {target}")
    if options.tables or options.adopt:
        readme_tables.write_readme()
        result_rows.write_fastest()
        return 0
    torch.set_num_threads(options.threads)
    conditions = {
        "machine": provenance.machine(),
        "torch": torch.__version__,
        "triton": provenance.triton_version(),
        "commit": provenance.commit(),
        "command": " ".join(["python -m benchmarks.run", *argv]),
    }
    if (busy := provenance.why_busy()) and not options.check:
        print(f"warning: {busy}", file=sys.stderr)
    device, wrong = torch.device(options.device), 0
    target = options.output or result_rows.results_file(
        conditions["machine"], provenance.device_name(device)
    )
    journal = (
        None
        if options.check or (options.quick and not options.output)
        else result_rows.Journal(target)
    )
    if journal and journal.recovered:
        print(
            f"took {journal.recovered} rows of a run that was cut off into {target}",
            file=sys.stderr,
        )
    for result in results(options):
        print(line(result), flush=True)
        wrong += result.status.startswith(("wrong", STOPPED))
        if journal and not result.status.startswith(STOPPED):
            journal.add(row_of(result, device, conditions))
    if journal:
        journal.finish()
        if options.output is None:
            readme_tables.write_readme()
            result_rows.write_fastest()
    if wrong:
        print(f"{wrong} results are wrong, or ended their benchmark", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
