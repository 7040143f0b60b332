"""The pictures of the studies: equal data give equal bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studies.documents import watched


@contextmanager
def drawn(path: Path) -> Iterator[Any]:
    """Matplotlib axes to draw on, saved as an SVG file with the legend beside them when the block ends."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "surgery"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.grid(alpha=0.3, which="both")
    yield axes
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with watched(path):
        figure.savefig(path, metadata={"Date": None})


def divergence_axis(axes: Any) -> None:
    """KL divergence upwards, on a logarithmic scale."""
    axes.set_yscale("log")
    axes.set_ylabel("KL divergence from the source, nats a token")
