"""Hold Surgery against llama.cpp's own programs, on a random model of every architecture that they can make."""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from conformance.build import UnavailableError, build_programs, default_folder
from conformance.checks import CHECKS, check_model
from conformance.known import reason_for
from conformance.models import make_models
from conformance.others import OTHERS, check_other
from conformance.outcome import Outcome
from conformance.page import write_page
from conformance.programs import Programs
from conformance.text import conformance_text
from native.model import default_threads
from pipeline.cli.output import echo, print_json, print_table
from pipeline.cli.progress_report import ProgressReport

Outcomes = dict[str, Outcome]
SYMBOLS = {"works": "ok", "refused": "refused", "wrong": "WRONG"}
UNAVAILABLE = 3  # the exit code where llama.cpp's programs cannot be had: nothing was checked


@click.command()
@click.option("--only", "patterns", multiple=True, metavar="PATTERN", help="Such as llama-dense, qwen3* or converter.")
@click.option("--every", default=1, type=click.IntRange(1), metavar="N", help="Of the models every Nth alone.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to build.  [default: beside the environment]")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table as a page of documentation.")
@click.option("--jobs", default=0, help="Models at a time.  [default: as many as there are processors]")
@click.option("--json", "as_json", is_flag=True, help="Print every outcome as one JSON object.")
def main(patterns: Sequence[str], every: int, folder: Path | None, page: Path | None, jobs: int, as_json: bool) -> None:
    """Check every architecture, the converter, vocabularies and split files against llama.cpp's own programs.

    Ends with 1 if anything is neither right nor refused for a reason that is known, with 3 if the programs cannot be
    had here, so that nothing was checked.
    """
    folder = folder or default_folder()
    others = [name for name in OTHERS if _chosen(name, patterns)]
    try:
        programs = Programs(build_programs(folder))
        paths = [path for path in make_models(programs, folder) if _chosen(path.stem, patterns)][::every]
    except UnavailableError as error:
        echo(f"llama.cpp's programs cannot be had here: {error}", err=True)
        sys.exit(UNAVAILABLE)
    if not paths and not others:
        raise click.UsageError(f"nothing is called {' or '.join(patterns)}; expected a model or {', '.join(OTHERS)}")
    results: dict[str, Outcomes] = {}
    beside: Outcomes = {}
    with (
        tempfile.TemporaryDirectory(prefix="conformance-cache-") as cache,
        ProgressReport("checking", unit="checks") as bar,
    ):
        os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # in every process: models are enough
        os.environ["SURGERY_CACHE"] = cache  # statistics of another version of the program must not be found
        for name, outcome in _checked(paths, others, programs, folder, jobs or default_threads()):
            if isinstance(outcome, Outcome):
                beside[name] = outcome
            else:
                results[name] = outcome
            bar.update(len(results) + len(beside), len(paths) + len(others), name)
    results, beside = dict(sorted(results.items())), {name: beside[name] for name in others}
    unknown = list(_unknown(results))
    unknown += [f"{n}: {line}" for n, o in beside.items() if o.state != "works" for line in o.detail.splitlines()]
    if page:
        write_page(page, results, beside)
    if as_json:
        models = {name: {check: vars(o) for check, o in outcomes.items()} for name, outcomes in results.items()}
        print_json({"models": models, "others": {name: vars(o) for name, o in beside.items()}})
    else:
        _print(results, beside, unknown)
    sys.exit(1 if unknown else 0)


def _chosen(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def _checked(
    paths: Sequence[Path], others: Sequence[str], programs: Programs, folder: Path, jobs: int
) -> Iterator[tuple[str, Outcomes | Outcome]]:
    """What each came to, as it comes; the longest first."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: dict[Future[Any], str] = {}
        for name in others:
            running[pool.submit(check_other, name, folder)] = name
        for path in paths:
            running[pool.submit(check_model, path, conformance_text(), programs)] = path.stem
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, only what runs is waited for


def _unknown(results: dict[str, Outcomes]) -> Iterator[str]:
    for name, outcomes in results.items():
        for check, outcome in outcomes.items():
            if outcome.state != "works" and reason_for(name, check, outcome) is None:
                yield f"{name}, {check}: {outcome.state}: {outcome.detail}"


def _print(results: dict[str, Outcomes], others: Outcomes, unknown: Sequence[str]) -> None:
    if results:
        rows = [
            (name, *(SYMBOLS[outcome.state] for outcome in outcomes.values())) for name, outcomes in results.items()
        ]
        print_table(("model", *CHECKS), rows)
        for check in CHECKS:
            states = Counter(outcomes[check].state for outcomes in results.values())
            echo(f"{check:<16}{states['works']} work, {states['refused']} refused, {states['wrong']} wrong")
    for name, outcome in others.items():
        echo(f"{name:<16}{outcome.state}{f': {outcome.detail}' if outcome.state == 'works' else ''}")
    for line in unknown:
        echo(f"not known: {line}", err=True)


if __name__ == "__main__":
    main()
