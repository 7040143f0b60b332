"""`surgery eval`: perplexity, and KL divergence to a base."""

import click

from native.model import ContextOptions
from pipeline.calibration.overlap import overlap_warning
from pipeline.cli.options import cache_type_options, json_option, model_argument, threads_option
from pipeline.cli.output import ProgressReport, print_json, warn
from pipeline.evaluation import evaluate
from pipeline.sources import open_model
from pipeline.texts import CALIBRATION_TEXT, EVALUATION_TEXT, read_text


@click.command("eval")
@model_argument
@click.option(
    "--text",
    default=EVALUATION_TEXT,
    show_default=True,
    help=f"A UTF-8 text file, {EVALUATION_TEXT} or {CALIBRATION_TEXT} (two halves of Python's language reference).",
)
@click.option("--base", help="Compare with this model: KL divergence from it, token by token.")
@click.option("--chunks", type=int, help="How many chunks of the text to use.  [default: all]")
@click.option("--ctx", default=512, show_default=True, help="Tokens a chunk; the second half of each is scored.")
@cache_type_options
@click.option("--gpu-layers", default=0, show_default=True, help="Layers to put on a GPU.")
@threads_option
@json_option
def command(
    model: str,
    text: str,
    base: str | None,
    chunks: int | None,
    ctx: int,
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
    if warning := overlap_warning(opened, measured):
        warn(warning)
    with ProgressReport("evaluating", unit="chunks") as report:
        result = evaluate(
            opened.path,
            measured,
            base=open_model(base).path if base else None,
            chunks=chunks,
            options=options,
            progress=report.update,
        )
    if as_json:
        print_json(result)
        return
    click.echo(
        f"text            {result['text']}, {result['chunks']} chunks of {result['n_ctx']} tokens, {result['tokens_scored']:,} scored"
    )
    click.echo(f"perplexity      {result['ppl']:.4f} +/- {result['ppl_se']:.4f}")
    if base:
        click.echo(f"base            {result['base_ppl']:.4f} +/- {result['base_ppl_se']:.4f}   ({base})")
        click.echo(
            f"KL divergence   {result['kld_mean']:.5f} +/- {result['kld_se']:.5f} nats a token; median {result['kld_median']:.5f}, 99th percentile {result['kld_p99']:.4f}"
        )
        click.echo(f"same top token  {result['same_top']:.2%}")
    click.echo(
        f"speed           {result['tokens_per_second']:,.0f} tokens/s, {result['seconds']:.1f} s; KV cache {result['kv_cache_bytes'] / 2**20:.2f} MiB for {result['n_ctx']} tokens"
    )
