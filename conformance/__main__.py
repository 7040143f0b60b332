"""Hold Surgery against llama.cpp's own programs, on a random model of every architecture that they can make."""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path

import click

from conformance.build import build_programs, default_folder
from conformance.checks import CHECKS, Outcome, check_model
from conformance.known import reason_for
from conformance.models import make_models
from conformance.others import check_others
from conformance.page import write_page
from conformance.programs import Programs
from conformance.text import conformance_text
from native.model import default_threads
from pipeline.cli.output import ProgressReport, echo, print_json, print_table

Outcomes = dict[str, Outcome]
SYMBOLS = {"works": "ok", "refused": "refused", "wrong": "WRONG"}


@click.command()
@click.option("--only", "patterns", multiple=True, metavar="PATTERN", help="Only models such as llama-dense or qwen3*.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to build.  [default: beside the environment]")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table as a page of documentation.")
@click.option("--jobs", default=0, help="Models at a time.  [default: as many as there are processors]")
@click.option("--json", "as_json", is_flag=True, help="Print every outcome as one JSON object.")
def main(patterns: Sequence[str], folder: Path | None, page: Path | None, jobs: int, as_json: bool) -> None:
    """Check every architecture; ends with 1 if anything is neither right nor refused for a reason that is known."""
    folder = folder or default_folder()
    programs = Programs(build_programs(folder))
    paths = make_models(programs.folder / "test-llama-archs", folder / "models")
    paths = [path for path in paths if not patterns or any(fnmatch(path.stem, pattern) for pattern in patterns)]
    results: dict[str, Outcomes] = {}
    with (
        tempfile.TemporaryDirectory(prefix="conformance-cache-") as cache,
        ProgressReport("checking", unit="models") as bar,
    ):
        os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # in every process: models are enough
        os.environ["SURGERY_CACHE"] = cache  # statistics of another version of the program must not be found
        for name, outcomes in _checked(paths, programs, jobs or default_threads()):
            results[name] = outcomes
            bar.update(len(results), len(paths), name)
        others = {} if patterns else check_others(programs, folder)
    results = dict(sorted(results.items()))
    unknown = list(_unknown(results)) + [f"{n}: {o.detail}" for n, o in others.items() if o.state != "works"]
    if page:
        write_page(page, results, others)
    if as_json:
        print_json({name: {check: vars(o) for check, o in outcomes.items()} for name, outcomes in results.items()})
    else:
        _print(results, others, unknown)
    sys.exit(1 if unknown else 0)


def _checked(paths: Sequence[Path], programs: Programs, jobs: int) -> Iterator[tuple[str, Outcomes]]:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(check_model, path, conformance_text(), programs): path.stem for path in paths}
        for future in as_completed(running):
            yield running[future], future.result()


def _unknown(results: dict[str, Outcomes]) -> Iterator[str]:
    for name, outcomes in results.items():
        for check, outcome in outcomes.items():
            if outcome.state != "works" and reason_for(name, check, outcome) is None:
                yield f"{name}, {check}: {outcome.state}: {outcome.detail}"


def _print(results: dict[str, Outcomes], others: Outcomes, unknown: Sequence[str]) -> None:
    print_table(
        ("model", *CHECKS),
        [(name, *(SYMBOLS[outcome.state] for outcome in outcomes.values())) for name, outcomes in results.items()],
    )
    for check in CHECKS:
        states = Counter(outcomes[check].state for outcomes in results.values())
        echo(f"{check:<16}{states['works']} work, {states['refused']} refused, {states['wrong']} wrong")
    for name, outcome in others.items():
        echo(f"{name:<16}{outcome.state}: {outcome.detail}")
    for line in unknown:
        echo(f"not known: {line}", err=True)


if __name__ == "__main__":
    main()
