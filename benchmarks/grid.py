"""A grid of 24 cells by `surgery compare` against the same grid made by hand, on the embedded model.

By hand: operate to a file, quantise it whole, evaluate it in step with the source, cell by cell.
"""

import tempfile
import time
from pathlib import Path

from pipeline.compare.grid import Grid, grid_cells
from pipeline.compare.results import study_results
from pipeline.compare.run import run_study
from pipeline.compare.study import StudySettings, open_study
from pipeline.evaluation.evaluate import evaluate
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.models import EMBEDDED_NAME, open_model
from pipeline.inputs.texts import EVALUATION_TEXT, read_text
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.quantization import quantize

CHUNKS = 2
GRID = Grid(
    methods=("shared-kv", "separate"), thresholds=(0.99, 0.9, 0.7, 0.5), quants=("F16", "Q8_0", "Q4_K_M")
)  # and the source in the three quantisations, which by hand are not counted


def by_hand(folder: Path) -> dict[str, float]:
    model, text = open_model(EMBEDDED_NAME), read_text(EVALUATION_TEXT)
    divergences = {}
    for cell in grid_cells([GRID]):
        if isinstance(cell.plan, Plan):
            operate(model, folder / "operated.gguf", cell.plan, force=True)
            quantize(open_gguf(folder / "operated.gguf"), folder / "cell.gguf", cell.quant, force=True)
            result = evaluate(folder / "cell.gguf", text, base=model.path, chunks=CHUNKS)
            divergences[cell.label] = result.kld_mean
    return divergences


def by_compare(folder: Path) -> dict[str, float]:
    settings = StudySettings((read_text(EVALUATION_TEXT),), chunks=CHUNKS, answer_tokens=0)
    with open_study(folder, open_model(EMBEDDED_NAME), settings) as study:
        run_study(study, grid_cells([GRID]), lambda progress: None)
    return {cell.label: cell.kld_mean for cell in study_results(folder).cells}


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="surgery-bench-") as name:
        started = time.perf_counter()
        ours = by_compare(Path(name) / "study")
        middle = time.perf_counter()
        theirs = by_hand(Path(name))
        hand = time.perf_counter() - middle
    difference = max(abs(ours[label] - value) / value for label, value in theirs.items())
    print(
        f"{len(theirs)} cells of {CHUNKS} chunks (and the source in 3 quantisations): {middle - started:.0f} s,"
        f" by hand {hand:.0f} s: {(middle - started) / hand:.2f} of the time;"
        f" KL divergences differ by {difference:.1e} of themselves at the most"
    )
