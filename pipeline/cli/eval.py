"""`surgery eval`: perplexity, KL divergence to a base, and speed."""

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import click

from native.errors import NativeError
from native.evaluate import as_reference
from native.model import ContextOptions
from pipeline.cli.options import (
    cache_type_options,
    gpu_layers_option,
    json_option,
    list_option,
    model_argument,
    texts_option,
    threads_option,
)
from pipeline.cli.output import counted, echo, perplexity_text, print_json, print_table, warn
from pipeline.cli.parameters import WholeNumber
from pipeline.cli.progress_report import ProgressReport
from pipeline.cli.sections import SurgeryCommand
from pipeline.errors import SurgeryError
from pipeline.evaluation.evaluate import SMALLEST_CONTEXT, Evaluation, TextEvaluation, evaluate
from pipeline.evaluation.speed import Speed, speeds_at_depths
from pipeline.inputs.models import open_model
from pipeline.inputs.texts import EVALUATION_TEXT, read_text
from pipeline.json_text import as_json as as_json_object
from pipeline.json_text import plain
from pipeline.observations.contamination import contamination_warning


@click.command(
    "eval",
    cls=SurgeryCommand,
    sections={
        "What is measured": "base texts chunks ctx depths",
        "How the model runs": "cache_type_k cache_type_v gpu_layers threads",
    },
)
@model_argument
@texts_option
@click.option("--base", help="Compare with this model, its KV cache in F16: KL divergence from it, token by token.")
@click.option("--chunks", type=WholeNumber(1), help="How many chunks of each text to use.  [default: all]")
@click.option(
    "--ctx",
    default=512,
    show_default=True,
    type=WholeNumber(SMALLEST_CONTEXT),
    help="Tokens a chunk; the second half of each is scored.",
)
@list_option(
    "--depths",
    WholeNumber(0),
    "Also measure speed behind so many tokens in the KV cache, such as 0,4096,16384, the base's in turn.",
)
@cache_type_options
@gpu_layers_option
@threads_option
@json_option
def command(
    model: str,
    texts: tuple[str, ...],
    base: str | None,
    chunks: int | None,
    ctx: int,
    depths: tuple[int, ...] | None,
    cache_type_k: str,
    cache_type_v: str,
    gpu_layers: int,
    threads: int,
    as_json: bool,
) -> None:
    """Perplexity of MODEL on a text, as llama.cpp's perplexity tool computes it, and what was lost against a base."""
    options = ContextOptions(
        n_ctx=ctx, threads=threads, type_k=cache_type_k, type_v=cache_type_v, gpu_layers=gpu_layers
    )
    opened, measured = open_model(model), [read_text(name) for name in texts or (EVALUATION_TEXT,)]
    models = [opened, *([open_model(base)] if base else [])]
    for text in measured:
        if warning := contamination_warning(opened, text):
            warn(warning)
    with ProgressReport("evaluating", unit="chunks") as report:
        result = evaluate(
            opened.path,
            measured,
            base=models[1].path if base else None,
            chunks=chunks,
            options=options,
            progress=report.update,
        )
    speeds: dict[str, Any] = {}
    failure: Exception | None = None
    if depths:
        runs = list(zip((m.path for m in models), (options, as_reference(options)), strict=False))
        try:
            with ProgressReport("measuring speed", unit="tokens") as report:
                found = speeds_at_depths(runs, depths, report.update)
            speeds = {"speeds": found[0], "base_speeds": found[1] if base else None}
        except (SurgeryError, NativeError) as error:  # told after what was measured before
            speeds, failure = {"speeds": None, "base_speeds": None}, error
    base_file_bytes = models[1].file_bytes if base else None
    if as_json:
        sizes = {"file_bytes": opened.file_bytes, "base_file_bytes": base_file_bytes}
        print_json(as_json_object(result) | sizes | plain(speeds))
    else:
        print_evaluation(result, opened.file_bytes, base_file_bytes)
        if speeds.get("speeds"):
            echo()
            print_speeds(speeds["speeds"], speeds["base_speeds"])
    if failure:
        raise failure


def print_evaluation(result: Evaluation, file_bytes: int, base_file_bytes: int | None) -> None:
    """What `evaluate` found: text by text, if there are several in a table with their mean, then speed and sizes."""
    if len(result.texts) == 1:
        print_scores(result)
    else:
        print_texts(result)
    echo(
        f"speed           {result.tokens_per_second:,.0f} tokens/s, {result.seconds:.1f} s; KV cache {result.kv_cache_bytes / 2**20:.2f} MiB for {result.n_ctx} tokens"
    )
    beside = f", the base's {base_file_bytes / 1e6:,.1f} MB" if base_file_bytes is not None else ""
    echo(f"file            {file_bytes / 1e6:,.1f} MB{beside}")


def print_scores(result: Evaluation) -> None:
    """The scores of one text, a line each."""
    read = f"{counted(result.chunks, 'chunk')} of {result.n_ctx} tokens, {result.tokens_scored:,} scored"
    echo(f"text            {result.text}, {read}")
    echo(f"perplexity      {with_interval(result.ppl, result.ppl_low, result.ppl_high, perplexity_text)}")
    if result.base:
        base = with_interval(result.base_ppl, result.base_ppl_low, result.base_ppl_high, perplexity_text)
        echo(f"base            {base}   ({result.base})")
        loss = with_interval(result.kld_mean, result.kld_low, result.kld_high, divergence_text)
        echo(f"KL divergence   {loss} nats a token")
        echo(f"                median {result.kld_median:.5f}, 99th percentile {result.kld_p99:.4f}")
        echo(f"same top token  {result.same_top:.2%}")


def print_texts(result: Evaluation) -> None:
    """The scores of several texts as a table, with their mean; the worst is marked."""
    headings = ["text", "chunks", "perplexity"]
    if result.base:
        headings += ["base's", "KL divergence, nats a token", "same top"]
    rows = []
    named: list[tuple[str, TextEvaluation | Evaluation]] = [(text.text, text) for text in result.texts]
    for name, one in (*named, ("mean", result)):
        row = [name, f"{one.chunks:,}", with_interval(one.ppl, one.ppl_low, one.ppl_high, perplexity_text)]
        if result.base:
            row += [
                perplexity_text(one.base_ppl),
                with_interval(one.kld_mean, one.kld_low, one.kld_high, divergence_text),
                f"{one.same_top:.2%}",
            ]
        rows.append(row)
    print_table(headings, rows)
    measure = "loses most" if result.base else "is read worst"
    echo(f"\nworst           {result.worst} {measure}; texts count alike in the mean\n")


def with_interval(value: float, low: float, high: float, text: Callable[[float], str]) -> str:
    """A number with its 95 % interval over chunks, or the reason why there is none."""
    if isnan(low):
        return f"{text(value)} (a single chunk: no interval)"
    return f"{text(value)} (95 % interval over chunks {text(low)} to {text(high)})"


def divergence_text(value: float) -> str:
    return f"{value:.5f}"


def print_speeds(speeds: Sequence[Speed], base_speeds: Sequence[Speed] | None) -> None:
    """Tokens a second at each depth, and the cache; with a base the shares of its own."""

    rows = []
    for number, mine in enumerate(speeds):
        values = _medians_and_cache(mine)
        texts = [f"{value:,.1f}" for value in values]
        if base_speeds:
            pairs = zip(texts, values, _medians_and_cache(base_speeds[number]), strict=True)
            texts = [f"{text} ({value / base:.0%} of the base's)" for text, value, base in pairs]
        rows.append((f"{mine.depth:,}", *texts, f"{mine.n_ctx:,}"))
    print_table(("depth", "prompt, tokens/s", "generation, tokens/s", "KV cache, MiB", "for tokens"), rows)


def _medians_and_cache(speed: Speed) -> tuple[float, float, float]:
    return speed.prompt_speed.median, speed.generation_speed.median, speed.kv_cache_bytes / 2**20
