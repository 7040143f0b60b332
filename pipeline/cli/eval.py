"""`surgery eval`: perplexity, KL divergence to a base, and speed."""

from collections.abc import Sequence
from typing import Any

import click

from native.errors import NativeError
from native.evaluate import as_reference
from native.model import ContextOptions
from pipeline.calibration.overlap import overlap_warning
from pipeline.cli.options import (
    cache_type_options,
    gpu_layers_option,
    json_option,
    list_option,
    model_argument,
    threads_option,
)
from pipeline.cli.output import ProgressReport, counted, echo, perplexity_text, print_json, print_table, warn
from pipeline.cli.parameters import WholeNumber
from pipeline.errors import SurgeryError
from pipeline.evaluation.evaluate import SMALLEST_CONTEXT, evaluate
from pipeline.evaluation.speed import speeds_at_depths
from pipeline.files.models import open_model
from pipeline.files.texts import CALIBRATION_TEXT, EVALUATION_TEXT, read_text


@click.command("eval")
@model_argument
@click.option(
    "--text",
    default=EVALUATION_TEXT,
    show_default=True,
    help=f"A UTF-8 text file, {EVALUATION_TEXT} or {CALIBRATION_TEXT} (two halves of Python's language reference).",
)
@click.option("--base", help="Compare with this model, its KV cache in F16: KL divergence from it, token by token.")
@click.option("--chunks", type=WholeNumber(1), help="How many chunks of the text to use.  [default: all]")
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
    text: str,
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
    opened, measured = open_model(model), read_text(text)
    models = [opened, *([open_model(base)] if base else [])]
    if warning := overlap_warning(opened, measured):
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
    result |= {"file_bytes": opened.file_bytes, "base_file_bytes": models[1].file_bytes if base else None}
    failure: Exception | None = None
    if depths:
        found: list[Any] = [None, None]
        runs = list(zip((m.path for m in models), (options, as_reference(options)), strict=False))
        try:
            with ProgressReport("measuring speed", unit="tokens") as report:
                found = speeds_at_depths(runs, depths, report.update)
        except (SurgeryError, NativeError) as error:  # told after what was measured before
            failure = error
        result["speeds"], result["base_speeds"] = found[0], found[1] if base else None
    if as_json:
        print_json(result)
    else:
        print_evaluation(result, base)
    if failure:
        raise failure


def print_evaluation(result: dict[str, Any], base: str | None) -> None:
    """What `evaluate` found, and the speeds at depths if they were measured."""
    echo(
        f"text            {result['text']}, {counted(result['chunks'], 'chunk')} of {result['n_ctx']} tokens, {result['tokens_scored']:,} scored"
    )
    echo(f"perplexity      {perplexity_text(result['ppl'], result['ppl_se'])}")
    if base:
        echo(f"base            {perplexity_text(result['base_ppl'], result['base_ppl_se'])}   ({base})")
        echo(
            f"KL divergence   {result['kld_mean']:.5f} +/- {result['kld_se']:.5f} nats a token; median {result['kld_median']:.5f}, 99th percentile {result['kld_p99']:.4f}"
        )
        echo(f"same top token  {result['same_top']:.2%}")
    echo(
        f"speed           {result['tokens_per_second']:,.0f} tokens/s, {result['seconds']:.1f} s; KV cache {result['kv_cache_bytes'] / 2**20:.2f} MiB for {result['n_ctx']} tokens"
    )
    beside = f", the base's {result['base_file_bytes'] / 1e6:,.1f} MB" if base else ""
    echo(f"file            {result['file_bytes'] / 1e6:,.1f} MB{beside}")
    if result.get("speeds"):
        echo()
        print_speeds(result["speeds"], result["base_speeds"])


def print_speeds(speeds: Sequence[dict[str, Any]], base_speeds: Sequence[dict[str, Any]] | None) -> None:
    """Tokens a second at each depth, and the cache; with a base the shares of its own."""

    rows = []
    for number, mine in enumerate(speeds):
        values = _medians_and_cache(mine)
        texts = [f"{value:,.1f}" for value in values]
        if base_speeds:
            pairs = zip(texts, values, _medians_and_cache(base_speeds[number]), strict=True)
            texts = [f"{text} ({value / base:.0%} of the base's)" for text, value, base in pairs]
        rows.append((f"{mine['depth']:,}", *texts, f"{mine['n_ctx']:,}"))
    print_table(("depth", "prompt, tokens/s", "generation, tokens/s", "KV cache, MiB", "for tokens"), rows)


def _medians_and_cache(speed: dict[str, Any]) -> tuple[float, float, float]:
    return speed["prompt_speed"]["median"], speed["generation_speed"]["median"], speed["kv_cache_bytes"] / 2**20
