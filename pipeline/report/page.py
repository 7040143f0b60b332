"""The page: one HTML file that asks nothing of the network, with the scripts and styles that it needs inside."""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import altair
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.decompose.methods import METHODS
from pipeline.report.answer import LIMITS, QUESTION, Answer
from pipeline.report.cells import Cell, Results, different, name, worst_text
from pipeline.report.chart_style import DARK, LIGHT
from pipeline.report.figures import Figure
from pipeline.report.numbers import duration, mebibytes, megabytes, percent, significant
from pipeline.report.passages import passages
from pipeline.report.tables import columns
from pipeline.report.task_tables import task_tables


def render_page(results: Results, answer: Answer, figures: Sequence[Figure]) -> str:
    """`results` as `pipeline.compare.results` gives them; `figures` come in this order, after the answer."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "duration": duration,
        "mebibytes": mebibytes,
        "megabytes": megabytes,
        "percent": percent,
        "significant": significant,
        "unbroken": unbroken,
        "spoken": lambda text: text.replace("`", ""),
    }
    return environment.get_template("report.html.j2").render(
        answer=answer,
        base=results["base"],
        cells=results["cells"],
        charts={"light": LIGHT, "dark": DARK, "specifications": specifications(figures)},
        columns=columns(results),
        passages=passages(results, answer.best),
        terms=terms(results["cells"]),
        facts=facts(answer.best, results["base"]) if answer.best else [],
        figures=figures,
        limits=LIMITS,
        name=name,
        question=QUESTION,
        script=_part("report.js"),
        study=results["study"],
        style=_part("report.css"),
        tasks=task_tables(results),
        vega=vega_bundle(),
    )


def unbroken(text: str) -> str:
    """`text` with every number kept on one line with its error and its unit."""
    return re.sub(r"(?<=\d) (?=±|MB|MiB)|(?<=±) ", "\N{NO-BREAK SPACE}", text)


def terms(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """The words of a study that need a word: the unit of what is lost, and its methods."""
    nats = "what KL divergence is measured in: 0.01 nats a token are about 1 % more perplexity"
    methods = {name: method.summary for name, method in METHODS.items()}
    methods |= {
        "latent": "keys and values cached as one small latent, which is multi-head latent attention",
        "transmla": "the same by TransMLA's published recipe",
    }
    return [("nat", nats), *((name, methods[name]) for name in different(cells, "method") if name in methods)]


def facts(cell: Cell, base: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What to know of the best cell at a glance: a name, a value, and beside what to see it."""
    speed, base_speed = cell["generation_speed"], base["generation_speed"]
    worst = worst_text(cell)
    loss = "nats a token" + (f", on {worst['text']}" if worst is not cell else "")
    shown = [
        ("KL divergence", significant(worst["kld_mean"]), loss),
        ("perplexity", significant(cell["ppl"], 4), f"source {significant(base['ppl'], 4)}"),
        ("same top token", percent(cell["same_top"]), "as the source"),
        ("file", megabytes(cell["file_bytes"]), f"source {megabytes(base['file_bytes'])}"),
        ("KV cache", mebibytes(cell["kv_cache_bytes"]), f"source {mebibytes(base['kv_cache_bytes'])}"),
    ]
    if speed:
        beside = f"source {base_speed['median']:,.0f}" if base_speed else ""
        shown.append(("generation", f"{speed['median']:,.0f} tokens/s", beside))
    return shown


def specifications(figures: Sequence[Figure]) -> dict[str, Any]:
    """Every panel's Vega-Lite specification, by the id that the page gives it; as wide as there is room."""
    return {
        f"{figure.name}-{view.name}-{number}": specification(panel.chart)
        for figure in figures
        for view in figure.views
        for number, panel in enumerate(view.panels, 1)
    }


def specification(chart: altair.TopLevelMixin) -> dict[str, Any]:
    specified: dict[str, Any] = chart.to_dict()
    for unused in ("config", "$schema"):
        specified.pop(unused, None)
    return {"height": 260, "autosize": {"type": "fit-x", "contains": "padding"}} | specified | {"width": "container"}


@cache
def vega_bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets `vegaEmbed`, of the version that altair writes for."""
    version = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return _inside_script(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version))


def _part(file: str) -> Markup:
    text = files("pipeline.report").joinpath("page").joinpath(file).read_text(encoding="utf-8")
    return _inside_script(text) if file.endswith(".js") else Markup(text)


def _inside_script(source: str) -> Markup:
    """What a script says may not end the element that it stands in."""
    return Markup(re.sub("</(?=script)", r"<\\/", source, flags=re.IGNORECASE))
