"""A study is a plan file and a picture: `surgery compare` measures the plan, and goes on where it was interrupted."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from native.errors import NativeError
from pipeline.cli.calibrate import calibration_for_metric
from pipeline.cli.study_display import StudyDisplay
from pipeline.compare.found import CellResult, StudyResult
from pipeline.compare.grid import grid_cells, load_grids, needed_roles
from pipeline.compare.results import ledger_results
from pipeline.compare.run import run_study
from pipeline.compare.study import StudySettings, open_study
from pipeline.errors import SurgeryError
from pipeline.evaluation.scores import Scores
from pipeline.inputs.models import EMBEDDED_NAME, open_model
from pipeline.inputs.texts import EVALUATION_TEXT, read_text
from pipeline.json_text import as_json
from studies.documents import write_json


class Study(click.Command):
    """A command of which what goes wrong is one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SurgeryError, NativeError) as error:
            raise click.ClickException(str(error)) from None


def study_options(command: Any) -> Any:
    """What every study is given."""
    for option in (
        click.option("--docs", default="docs", show_default=True, type=click.Path(path_type=Path, exists=True)),
        click.option("--studies", default="studies-measured", show_default=True, type=click.Path(path_type=Path),
            help="The folder of the ledgers."),
        click.option("--threads", default=0, show_default=True, help="Processors to use; 0 for all."),
        click.option("--chunks", default=10, show_default=True, help="Chunks of 512 tokens of each text."),
        click.option("--evaluate", "texts", multiple=True, default=(EVALUATION_TEXT,), show_default=True,
            help="A text to evaluate on that was not calibrated on; several times for several."),
        click.option("--calibrate", "calibration", required=True, help="Statistics, or a text to calibrate on."),
    ):  # fmt: skip
        command = option(command)
    return command


def measured(name: str, *, studies: Path, docs: Path, **options: Any) -> StudyResult:
    """The study `name`, whose plan lies beside this file; what is missing is measured, and docs/NAME.json written.

    Raises as `measured_plan` does.
    """
    results = measured_plan(name, studies / name, **options)
    write_json(docs / f"{name}.json", as_json(results))
    return results


def measured_plan(
    name: str,
    folder: Path,
    *,
    calibration: str,
    texts: tuple[str, ...],
    chunks: int,
    threads: int,
    n_ctx: int = 512,
    answer_tokens: int = 0,
) -> StudyResult:
    """The plan called `name`, measured as far as it is missing in the study `folder`.

    Raises as `open_study` and `run_study` do, SurgeryError when a cell failed.
    """
    model = open_model(EMBEDDED_NAME)
    cells = grid_cells(load_grids(Path(__file__).with_name(f"{name.replace('-', '_')}.yaml")))
    settings = StudySettings(
        tuple(map(read_text, texts)), chunks=chunks, n_ctx=n_ctx, threads=threads, answer_tokens=answer_tokens
    )
    folder.parent.mkdir(exist_ok=True)
    calibrate = partial(calibration_for_metric, model, calibration, "attention", threads, needed_roles(cells))
    with open_study(folder, model, settings, calibrate) as study, StudyDisplay() as display:
        progress = run_study(study, cells, display.watch)
        results = ledger_results(study.ledger)
    if progress.failures:
        raise SurgeryError(f"{len(progress.failures)} cells failed; first {progress.failures[0]}")
    return results


def cell_of(results: StudyResult, **choices: Any) -> CellResult:
    """The cell with these fields. Raises LookupError when there is not exactly one."""
    found = [cell for cell in results.cells if all(getattr(cell, name) == value for name, value in choices.items())]
    if len(found) != 1:
        raise LookupError(f"{len(found)} cells are {choices}")
    return found[0]


def bars(cells: list[CellResult]) -> tuple[list[float], list[list[float]]]:
    """The KL divergences of `cells`, and how far their 95 % intervals reach below and above, as Matplotlib wants it."""
    means = [cell.kld_mean for cell in cells]
    return means, [[cell.kld_mean - cell.kld_low for cell in cells], [cell.kld_high - cell.kld_mean for cell in cells]]


def loss(scores: Scores) -> str:
    """KL divergence with half of its 95 % interval over chunks, for a table."""
    return f"{scores.kld_mean:.4f} ± {(scores.kld_high - scores.kld_low) / 2:.4f}"
