"""Which KV cache loses least for its size? Latent caches and quantised ones, alone and together, with a picture.

    python -m studies.latent_cache --calibrate valid.txt --evaluate test.txt

Converts the embedded model at several cache sizes, evaluates source and conversions with each cache type on text that
was not calibrated on, measures what llama.cpp allocates and how fast it runs, and writes docs/latent-cache.json and
docs/latent-cache.svg. The files are kept in --models and converted only where they are missing.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from native.evaluate import decode_columns, scored_positions
from native.model import Context, ContextOptions, load_model, open_context
from native.scoring import score_tokens
from pipeline.calibration.calibrate import calibrate
from pipeline.evaluation.speed import speeds_at_depths
from pipeline.evaluation.statistics import divergence_summary, perplexity
from pipeline.files.models import EMBEDDED_NAME, open_model
from pipeline.files.texts import read_text
from pipeline.gguf_file.reader import open_gguf
from pipeline.latent.convert import convert_to_latent
from pipeline.latent.plan import LatentPlan
from pipeline.quantization import quantize
from studies.pictures import divergence_axis, drawn

SIZES = (256, 224, 192, 160)
PLANS = {f"latent {size}": LatentPlan(cache=size) for size in SIZES}
PLANS["latent 160 rotary 48"] = LatentPlan(cache=160, rotary=48)
CACHE_TYPES = ("f16", "q8_0", "q4_0")
WEIGHT_TYPES = ("Q8_0", "Q4_K_M")
DEPTHS = (0, 4096, 16384)
TIMED = ("source F16", "latent 192 F16")
PARTS = ("memory", "divergence", "speed")
CONTEXTS = (4096, 32768)
N_CTX = 512


@click.command()
@click.option("--calibrate", "calibration_text", required=True, help="Text to calibrate on.")
@click.option("--evaluate", "evaluation_text", required=True, help="Another text, to evaluate on.")
@click.option("--chunks", default=20, show_default=True, help="Chunks of 512 tokens to evaluate on.")
@click.option("--crossed-chunks", default=10, show_default=True, help="The same with quantised caches or weights.")
@click.option("--threads", default=0, show_default=True, help="Processors to use; 0 for all.")
@click.option("--models", default=Path("latent-models"), show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--part", "parts", multiple=True, default=PARTS, type=click.Choice(PARTS), help="What to measure.  [default: all]"
)
@click.option("--docs", default=Path("docs"), show_default=True, type=click.Path(path_type=Path, exists=True))
def main(
    calibration_text: str,
    evaluation_text: str,
    chunks: int,
    crossed_chunks: int,
    threads: int,
    models: Path,
    parts: tuple[str, ...],
    docs: Path,
) -> None:
    """Measure what latent and quantised caches lose and save, and draw it."""
    path = docs / "latent-cache.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    files = convert_all(calibration_text, models, threads)

    def keep(part: str, value: Any) -> None:
        results[part] = value
        path.write_text(json.dumps(results, indent=1) + "\n")

    results["bytes"] = {name: file.stat().st_size for name, file in files.items()}
    if "memory" in parts and "memory" not in results:
        keep("memory", {name: kv_bytes(files[name], cache_types(name)) for name, _ in cell_groups(files)[0]})
    for number, group in enumerate(cell_groups(files)) if "divergence" in parts else ():
        missing = [cell for cell in group if ", ".join(cell) not in results.get("divergence", {})]
        if missing:
            text = read_text(evaluation_text).content
            found = divergences(files, missing, text, crossed_chunks if number else chunks, threads)
            keep("divergence", results.get("divergence", {}) | found)
    if "speed" in parts and "speed" not in results:
        measured = speeds_at_depths([(files[name], ContextOptions(threads=threads)) for name in TIMED], DEPTHS)
        keep("speed", dict(zip(TIMED, measured, strict=True)))
    print_tables(results)
    draw(results, docs / "latent-cache.svg")


def convert_all(calibration_text: str, folder: Path, threads: int) -> dict[str, Path]:
    """The source, its conversions, and the half cache with quantised weights, by name."""
    folder.mkdir(exist_ok=True)
    model = open_model(EMBEDDED_NAME)
    files = {"source": model.path}
    for name, plan in PLANS.items():
        files[name] = file = folder / f"{name.replace(' ', '-')}.gguf"
        if not file.exists():
            calibration = calibrate(model, read_text(calibration_text), threads=threads)
            report = convert_to_latent(model, file, plan, calibration, threads=threads)
            click.echo(f"{file}: {report.seconds:.0f} s, {report.output_bytes / 1e6:.1f} MB")
    for name in ("source", "latent 192"):
        for kind in ("F16", *WEIGHT_TYPES):
            files[f"{name} {kind}"] = file = folder / f"{name.replace(' ', '-')}-{kind}.gguf"
            if not file.exists():
                quantize(open_gguf(files[name]), file, kind, threads=threads)
    return files


def cell_groups(files: dict[str, Path]) -> list[list[tuple[str, str]]]:
    """Pairs of model and cache type, in the groups that are measured together: each decodes the source once."""
    others = [name for name in files if name not in ("source", "source F16", *PLANS)]
    return [[(name, kind) for name in ("source", *PLANS) if kind in cache_types(name)] for kind in CACHE_TYPES] + [
        [(name, "f16") for name in others]
    ]


def cache_types(name: str) -> tuple[str, ...]:
    """The types that a model's cache can have: a latent of 112 numbers is no whole number of a quantised type's blocks."""
    return ("f16",) if "rotary" in name else CACHE_TYPES


def kv_bytes(file: Path, kinds: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """What llama.cpp allocates for the cache, in bytes by type and tokens."""
    sizes: dict[str, dict[str, int]] = {}
    with load_model(str(file)) as model:
        for kind in kinds:
            for n in CONTEXTS:
                with open_context(model, ContextOptions(n_ctx=n, n_batch=512, type_k=kind, type_v=kind)) as context:
                    sizes.setdefault(kind, {})[str(n)] = context.kv_cache_bytes
    return sizes


def divergences(
    files: dict[str, Path], cells: list[tuple[str, str]], text: str, chunks: int, threads: int
) -> dict[str, Any]:
    """Perplexity and KL divergence from the source with an f16 cache, all models in step so that it is decoded once."""
    nll: dict[tuple[str, str], list[np.ndarray]] = {cell: [] for cell in cells}
    kld: dict[tuple[str, str], list[np.ndarray]] = {cell: [] for cell in cells}
    same: dict[tuple[str, str], list[np.ndarray]] = {cell: [] for cell in cells}
    ((positions, outputs),) = scored_positions(N_CTX, N_CTX)
    with ExitStack() as stack:
        names = dict.fromkeys(["source", *(name for name, _ in cells)])
        models = {name: stack.enter_context(load_model(str(files[name]))) for name in names}
        contexts: dict[tuple[str, str], Context] = {}
        for name, kind in [("source", "f16"), *cells]:
            options = ContextOptions(n_ctx=N_CTX, threads=threads, type_k=kind, type_v=kind)
            contexts[name, kind] = stack.enter_context(open_context(models[name], options))
        tokens = models["source"].tokenize(text, special=False)
        for start in range(0, chunks * N_CTX, N_CTX):
            chunk = tokens[None, start : start + N_CTX]
            base = None
            for cell, context in contexts.items():  # the source with an f16 cache is the first
                context.clear()
                decode_columns(context, chunk, positions, outputs)
                logits = context.logits(int(outputs.sum()))
                base = logits.copy() if base is None else base
                scores = score_tokens(logits, chunk[0, positions[outputs] + 1], base)
                if cell in cells:
                    nll[cell].append(scores.nll)
                    kld[cell].append(scores.kld)
                    same[cell].append(scores.same_top)
            click.echo(f"chunk {start // N_CTX + 1} of {chunks}", err=True)
    result: dict[str, Any] = {}
    for name, kind in cells:
        ppl, ppl_se = perplexity(np.concatenate(nll[name, kind]))
        summary = divergence_summary(np.concatenate(kld[name, kind]), np.concatenate(same[name, kind]))
        result[f"{name}, {kind}"] = {"ppl": ppl, "ppl_se": ppl_se, "chunks": chunks} | summary
    return result


def print_tables(results: dict[str, Any]) -> None:
    """The cells as Markdown tables."""
    memory, divergence = results["memory"], results["divergence"]
    click.echo("| model | cache | KV MiB at 4096 | at 32768 | KL | perplexity |\n|---|---|---|---|---|---|")
    for cell, found in divergence.items():
        name, kind = cell.split(", ")
        sizes = memory.get(name, {}).get(kind, {})
        mib = " | ".join(f"{sizes[str(n)] / 2**20:.1f}" if sizes else "" for n in CONTEXTS)
        click.echo(
            f"| {name} | {kind} | {mib} | {found['kld_mean']:.4f} ± {found['kld_se']:.4f} | {found['ppl']:.2f} |"
        )
    click.echo("\n| model | " + " | ".join(f"prompt, generation at {depth}" for depth in DEPTHS) + " |")
    for name, depths in results["speed"].items():
        rates = ([speed[key] for key in ("prompt_speed", "generation_speed")] for speed in depths)
        cells = (", ".join(f"{r['median']:.0f} ({r['low']:.0f} to {r['high']:.0f})" for r in pair) for pair in rates)
        click.echo(f"| {name} | " + " | ".join(cells) + " |")


def draw(results: dict[str, Any], path: Path) -> None:
    """KL divergence over bytes of cache for a token, a line a cache type."""

    def point(name: str, kind: str) -> tuple[float, float, float]:
        found = results["divergence"][f"{name}, {kind}"]
        size = results["memory"][name][kind][str(CONTEXTS[-1])] / CONTEXTS[-1] / 1024
        return size, found["kld_mean"], 1.96 * found["kld_se"]

    colours = dict(zip(CACHE_TYPES, ("tab:blue", "tab:orange", "tab:red"), strict=True))
    with drawn(path) as axes:
        for kind, colour in colours.items():
            sizes, means, errors = zip(*(point(f"latent {size}", kind) for size in SIZES), strict=True)
            axes.errorbar(sizes, means, errors, color=colour, marker="o", markersize=4, label=f"latent, {kind} cache")
        for kind in CACHE_TYPES[1:]:
            size, mean, error = point("source", kind)
            axes.errorbar(
                [size], [mean], [error], color=colours[kind], marker="*", markersize=11, linestyle="none",
                label=f"source, {kind} cache",
            )  # fmt: skip
        divergence_axis(axes)
        axes.set_xlabel("KiB of cache for a token")


if __name__ == "__main__":
    main()
