"""What measures models: on texts, in grids, and by what they say."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from native.generate import AnswerStatistics, SamplingOptions
from native.model import ContextOptions
from pipeline import conversation
from pipeline.compare.found import StudyResult
from pipeline.compare.grid import Grid, check_cells, grid_cells, grid_tasks, needed_metric, needed_roles
from pipeline.compare.results import study_results
from pipeline.compare.run import Watch, run_study
from pipeline.compare.study import StudySettings, open_study
from pipeline.compare.tasks import open_tasks
from pipeline.errors import SurgeryError
from pipeline.evaluation import evaluate as evaluation
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.models import resolve_model
from pipeline.inputs.texts import AUTO_TEXT, EVALUATION_TEXT, Text, read_text
from pipeline.observations.statistics_file import Calibration
from pipeline.progress import Progress, silent
from surgery.making import Named, Statistics, open_model, statistics


@dataclass(frozen=True)
class Answer:
    """What a model answered; its `statistics` say how many tokens it took, how long, and why it ended."""

    text: str
    statistics: AnswerStatistics

    def __str__(self) -> str:
        return self.text


def evaluate(
    model: Named,
    texts: str | Path | Sequence[str | Path] = EVALUATION_TEXT,
    *,
    base: Named | None = None,
    chunks: int | None = None,
    n_ctx: int = 512,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    threads: int = 0,
    progress: Progress = silent,
) -> evaluation.Evaluation:
    """Perplexity of `model` on `texts` and, given a `base`, its KL divergence from that, with 95 % intervals.

    `chunks` of `n_ctx` tokens are read of each text, all without. `progress` counts chunks. Raises UsageError for a
    text that is none, NativeError when llama.cpp refuses the model.
    """
    return evaluation.evaluate(
        _path(model), _texts(texts),
        base=None if base is None else _path(base), chunks=chunks,
        options=ContextOptions(n_ctx=n_ctx, type_k=cache_type_k, type_v=cache_type_v, threads=threads),
        progress=progress,
    )  # fmt: skip


def compare(
    model: Named,
    folder: str | Path,
    grid: Grid | Sequence[Grid],
    *,
    texts: str | Path | Sequence[str | Path] = EVALUATION_TEXT,
    calibration: Statistics = AUTO_TEXT,
    chunks: int = 20,
    n_ctx: int = 512,
    prompt: str = "What is machine learning?",
    answer_tokens: int = 64,
    threads: int = 0,
    watch: Watch = lambda progress: None,
) -> StudyResult:
    """Measure every cell of a grid in the study of `folder`, where it goes on if it was begun; `watch` hears how far.

    `calibration` is used by operations that need it. Raises UsageError for a grid that the model cannot have, or a
    study of something else; SurgeryError when cells failed, once all others are measured.
    """
    source = open_model(model)
    grids = [grid] if isinstance(grid, Grid) else grid
    cells = grid_cells(grids)
    check_cells(source, cells)
    metric = needed_metric(cells)

    def calibrate() -> Calibration | None:
        return None if metric == "weights" else statistics(source, calibration, metric, threads, needed_roles(cells))

    settings = StudySettings(
        _texts(texts), chunks=chunks, n_ctx=n_ctx, threads=threads, prompt=prompt, answer_tokens=answer_tokens
    )
    with (
        open_tasks(source, grid_tasks(grids), threads=threads) as tasks,
        open_study(Path(folder), source, settings, calibrate, tasks) as study,
    ):
        failures = run_study(study, cells, watch).failures
    if failures:
        raise SurgeryError(f"{len(failures)} of {len(cells)} cells failed; first {failures[0]}")
    return load_study(folder)


def load_study(folder: str | Path) -> StudyResult:
    """What is measured of the study in `folder`. Raises UsageError when there is none."""
    return study_results(Path(folder))


def ask(
    model: Named,
    prompt: str,
    *,
    system: str | None = None,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    max_tokens: int = 256,
    n_ctx: int = 0,
    threads: int = 0,
) -> Answer:
    """The answer to `prompt` in the model's own chat template; temperature 0 takes the likeliest token each time.

    `n_ctx` 0 is the model's own context, at most 4096 tokens. Raises NativeError when llama.cpp refuses the model.
    """
    sampling = SamplingOptions(temperature, top_p, seed, max_tokens)
    options = ContextOptions(n_ctx=n_ctx, threads=threads)
    with closing(conversation.start_conversation(_path(model), options, sampling, system=system)) as talk:
        *pieces, last = conversation.ask(talk, prompt)
    assert isinstance(last, AnswerStatistics)
    return Answer("".join(map(str, pieces)), last)


def _path(model: Named) -> Path:
    """The file that llama.cpp is to run."""
    return model.path if isinstance(model, GGUFModel) else resolve_model(str(model))


def _texts(names: str | Path | Sequence[str | Path]) -> tuple[Text, ...]:
    return tuple(read_text(str(name)) for name in ([names] if isinstance(names, str | Path) else names))
