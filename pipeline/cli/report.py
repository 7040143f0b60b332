"""`surgery report`: the page, tables and pictures of a study."""

from pathlib import Path

import click

from pipeline.cli.options import json_option
from pipeline.cli.output import echo, print_json
from pipeline.cli.sections import SurgeryCommand
from pipeline.errors import UsageError
from pipeline.report.charts import require_charts


@click.command("report", cls=SurgeryCommand)
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The HTML file to write; tables/ and plots/ go beside it.  [default: STUDY/report.html]",
)
@json_option
def command(study: Path, output: Path | None, as_json: bool) -> None:
    """Write what came out of STUDY, a folder of surgery compare, as one HTML page that needs no network.

    Beside it go tables/ (CSV, Markdown, JSON) and plots/ (SVG, PNG). An unfinished study is reported as far as it is.
    """
    if not study.is_dir():
        raise UsageError(f"{study}: no such folder; expected one that surgery compare -o has made")
    require_charts()
    from pipeline.compare.results import study_results
    from pipeline.json_text import as_json as as_json_object
    from pipeline.report.write import check_page, write_report

    page = output or study / "report.html"
    check_page(page)
    written = write_report(as_json_object(study_results(study)), page)
    if as_json:
        print_json(written)
        return
    echo("\n".join(written["answer"]))
    size = page.stat().st_size / 1e6
    echo(f"\nwrote {page} ({size:.1f} MB), {len(written['tables'])} tables and {len(written['plots'])} pictures")
