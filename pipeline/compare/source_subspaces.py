"""What a study's source reads, for the report: looked into once, and kept in the ledger, as the model may go."""

from collections.abc import Callable
from typing import Any

from pipeline.attention import find_attention
from pipeline.compare.study import Study
from pipeline.layers import AttentionLayers
from pipeline.subspaces.outline import overlap_outline, spectrum_outline
from pipeline.subspaces.similarity import Lens, overlap, spectra

FACT = "subspaces"


def look_into_source(study: Study, tell: Callable[[str], None]) -> None:
    """Write down what is not known yet under `weights`, and under `inputs` if the study is calibrated.

    Nothing of a source whose q, k and v are not one matrix each. `tell` hears what is being done. An interruption loses
    the metric that was being looked at.
    """
    if not find_attention(study.model).plain:
        return
    known = study.ledger.facts().get(FACT, {})
    for metric in ("weights", "inputs") if study.calibration else ("weights",):
        taken_from = study.subject.calibration_sha256 if metric == "inputs" else ""
        if metric in known and known[metric]["calibration_sha256"] == taken_from:
            continue
        lens = Lens(AttentionLayers(study.model, study.calibration), metric, "keep")
        known[metric] = {"calibration_sha256": taken_from, **outline(lens, tell)}
        study.ledger.set_facts({FACT: known})


def outline(lens: Lens, tell: Callable[[str], None]) -> dict[str, Any]:
    """All that the report draws of a source under one metric."""

    def hear(doing: str) -> None:
        tell(f"looking into the source, {lens.metric}: {doing}")

    return {"spectrum": spectrum_outline(spectra(lens, hear)), **overlap_outline(overlap(lens, hear))}
