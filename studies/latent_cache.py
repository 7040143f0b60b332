"""Which KV cache loses least for its size? Latent caches and quantised ones, alone and together, with a picture.

    python -m studies.latent_cache --calibrate valid.txt --evaluate test.txt

Measures studies/latent_cache.yaml, then how fast a half cache runs behind a filled one, and writes
docs/latent-cache.json, docs/latent-cache.svg and the tables in docs/latent.md.
"""

import tempfile
from pathlib import Path
from typing import Any

import click

from native.model import ContextOptions
from pipeline.calibration.obtain import obtain_calibration
from pipeline.compare.found import BaseResult, CellResult, StudyResult
from pipeline.evaluation.speed import Speed, speeds_at_depths
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.models import EMBEDDED_NAME, open_model
from pipeline.json_text import plain
from pipeline.latent.convert import convert_to_latent
from pipeline.latent.plan import LatentPlan
from pipeline.quantization import quantize
from studies.documents import document, markdown, write_json
from studies.measured import Study, bars, cell_of, loss, measured, study_options
from studies.pictures import divergence_axis, drawn

SIZES = (256, 192, 160)
CACHE_TYPES = {
    "f16": "tab:blue", "q8_0": "tab:orange", "q5_0": "tab:green", "iq4_nl": "tab:purple", "q4_0": "tab:red",
}  # fmt: skip
DEPTHS = (0, 4096, 16384)
CONTEXTS = (4096, 32768)


@click.command(cls=Study)
@study_options
@click.option(
    "--speed/--no-speed", "with_speed", default=True, show_default=True, help="Also measure speed, at the end."
)
def main(docs: Path, with_speed: bool, calibration: str, threads: int, **options: Any) -> None:
    """Measure what latent and quantised caches lose and save, and draw it."""
    results = measured("latent-cache", docs=docs, calibration=calibration, threads=threads, **options)
    document(docs / "latent.md", "latent-cache", table(results))
    draw(results, docs / "latent-cache.svg")
    if with_speed:
        speeds = half_cache_speeds(calibration, threads)
        document(docs / "latent.md", "latent-speed", speed_table(speeds))
        write_json(docs / "latent-speed.json", plain(speeds))


def half_cache_speeds(calibration: str, threads: int) -> dict[str, list[Speed]]:
    """The source and its conversion to a cache of 192 numbers, both in F16, in turn at each of DEPTHS."""
    model, options, plan = open_model(EMBEDDED_NAME), ContextOptions(threads=threads), LatentPlan(cache=192)
    with tempfile.TemporaryDirectory(prefix="surgery-") as folder:
        source, latent, half = (Path(folder) / f"{name}.gguf" for name in ("source", "latent", "half"))
        quantize(model, source, "F16", threads=threads)
        convert_to_latent(
            model,
            latent,
            plan,
            obtain_calibration(model, calibration, roles=plan.roles),
            threads=threads,
        )
        quantize(open_gguf(latent), half, "F16", threads=threads)
        found = speeds_at_depths([(source, options), (half, options)], DEPTHS)
    return dict(zip(("source F16", "latent 192 F16"), found, strict=True))


def cache_bytes(study: dict[str, Any], cell: CellResult | BaseResult) -> float:
    """What llama.cpp allocates for a token."""
    return (cell.kv_cache_bytes or 0) / float(study["n_ctx"])


def table(results: StudyResult) -> str:
    """The cells by their bytes, KL divergence with half of its 95 % interval over chunks, a column a text."""
    rows = [
        [
            cell.label,
            *(f"{cache_bytes(results.study, cell) * n / 2**20:.1f}" for n in CONTEXTS),
            f"{share_of_bytes(results, cell):.0%}",
            *map(loss, cell.texts),
            f"{cell.same_top:.1%}",
        ]
        for cell in sorted(results.cells, key=lambda cell: -share_of_bytes(results, cell))
    ]  # fmt: skip
    sizes = [f"cache at {n:,} tokens, MiB" for n in CONTEXTS]
    texts = [text.text for text in results.cells[0].texts]
    return markdown(["model", *sizes, "share", *texts, "same top token"], rows)


def share_of_bytes(results: StudyResult, cell: CellResult) -> float:
    """Its cache's bytes as a share of the source's in F16."""
    return cache_bytes(results.study, cell) / cache_bytes(results.study, results.base)


def speed_table(speeds: dict[str, list[Speed]]) -> str:
    """Medians of tokens a second, and between which quartiles they lie."""
    rows = []
    for name, depths in speeds.items():
        rates = ((speed.prompt_speed, speed.generation_speed) for speed in depths)
        rows.append(
            [name, *(", ".join(f"{r.median:.0f} ({r.low:.0f} to {r.high:.0f})" for r in pair) for pair in rates)]
        )
    return markdown(["model", *(f"prompt, generation at depth {depth:,}" for depth in DEPTHS)], rows)


def draw(results: StudyResult, path: Path) -> None:
    """KL divergence, mean over the texts, over the share of the cache's bytes, a line a cache type."""
    with drawn(path) as axes:
        for kind, colour in CACHE_TYPES.items():
            line = [cell_of(results, method="latent", cache=size, quant="source", cache_type=kind) for size in SIZES]
            sizes = [share_of_bytes(results, cell) for cell in line]
            means, reach = bars(line)
            axes.errorbar(sizes, means, reach, color=colour, marker="o", markersize=4, label=f"latent, {kind} cache")
            if kind == "f16":
                continue
            alone = cell_of(results, method="none", quant="source", cache_type=kind)
            means, reach = bars([alone])
            axes.errorbar(
                [share_of_bytes(results, alone)], means, reach, color=colour, marker="*", markersize=11,
                linestyle="none", label=f"source, {kind} cache",
            )  # fmt: skip
        divergence_axis(axes)
        axes.set_xlabel("share of the bytes of the source's F16 cache")
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")


if __name__ == "__main__":
    main()
