"""Every table and picture of README and docs/findings.md and docs/latent.md again; what changed is said, line by line.

    python -m studies --valid wikitext2/valid.txt --test wikitext2/test.txt --plays shakespeare.txt

Hours on two cores, and interrupted as one likes: what is measured is kept in --studies. docs/architectures.md is written
by `make conformance`; speeds are printed by `make bench`.
"""

from pathlib import Path

import click

from studies import calibration_texts, cross_layer, front, latent_cache, shared_structure, subspaces, variations, where
from studies.measured import Study

TEXTS = ("python-docs", "python-code")
"""What comes along and can be evaluated on besides what is given."""


@click.command(cls=Study)
@click.option("--valid", required=True, help="A text to calibrate on.")
@click.option("--test", required=True, help="A text of the same kind, to evaluate on.")
@click.option("--plays", required=True, help="A text of another kind, to evaluate on.")
@click.option("--docs", default="docs", show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--studies", default="studies-measured", show_default=True, type=click.Path(path_type=Path))
@click.option("--threads", default=0, show_default=True, help="Processors to use; 0 for all.")
@click.pass_context
def main(ctx: click.Context, valid: str, test: str, plays: str, docs: Path, studies: Path, threads: int) -> None:
    """Measure what is missing, and write all tables and pictures again."""
    everywhere = {"docs": docs, "threads": threads}
    at_home = {**everywhere, "studies": studies, "texts": (test,), "calibration": valid}
    abroad = {**everywhere, "studies": studies, "texts": (test, *TEXTS, plays), "chunks": 8}
    ctx.invoke(front.main, calibration=f"self,{valid}", **abroad)
    ctx.invoke(subspaces.main, calibration=valid, **everywhere)
    ctx.invoke(variations.main, chunks=10, **at_home)
    ctx.invoke(shared_structure.main, chunks=10, **at_home)
    ctx.invoke(cross_layer.main, chunks=10, **at_home)
    ctx.invoke(where.main, chunks=10, **at_home)
    ctx.invoke(calibration_texts.main, calibration="self", home=valid, **abroad)
    ctx.invoke(latent_cache.main, chunks=20, **at_home)


if __name__ == "__main__":
    main()
