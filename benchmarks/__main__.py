"""Run all benchmarks, or those named: decomposition, operating, evaluation, likelihoods, grid, writing."""

import sys

import click

from benchmarks import decomposition, evaluation, grid, likelihoods, operating, writing

BENCHMARKS = {
    "decomposition": decomposition.run,
    "operating": operating.run,
    "evaluation": evaluation.run,
    "likelihoods": likelihoods.run,
    "grid": grid.run,
    "writing": writing.run,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
def main(names: tuple[str, ...]) -> None:
    """Measure speed as ratios against named alternatives."""
    for name in names or BENCHMARKS:
        click.echo(f"== {name}")
        BENCHMARKS[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
