"""The source of a study, decoded once for all cells: its logits as files, its scores and answer in the ledger."""

from collections.abc import Callable, Sequence

from native.evaluate import EvaluationStart, ModelRun, TextChunks
from native.isolated import isolated
from native.measure import MeasuredAnswer, measure
from native.recorded import logits_file
from pipeline.compare.cell import text_key
from pipeline.compare.ledger import Run, known_texts
from pipeline.compare.measuring import answer_facts
from pipeline.compare.study import Study
from pipeline.evaluation.statistics import require_finite
from pipeline.inputs.texts import Text, named
from pipeline.revision import made_with


def base_missing(study: Study, text: Text) -> list[int]:
    """The chunks of a text whose logits of the source are not there."""
    known, folder = study.ledger.chunk_count(text_key(study.base_key, text.sha256)), study.logits(text)
    return [n for n in range(study.chunks(text)) if n >= known or not logits_file(folder, n).exists()]


def record_base(study: Study, advance: Callable[[], None]) -> None:
    """Decode the source once: its logits of every chunk into files, its scores and answer into the ledger."""
    texts, run = study.settings.texts, study.ledger.run(study.base_key)
    missing = [base_missing(study, text) for text in texts]
    if not any(missing) and run.status == "done" and not study.answer_tokens(run):
        return
    wanted = [
        TextChunks(
            text.content, study.settings.chunks, first[0] if first else study.chunks(text), str(study.logits(text))
        )
        for text, first in zip(texts, missing, strict=True)
    ]
    model = ModelRun(str(study.model.path), study.options)
    events = isolated(
        measure, model, wanted, prompt=study.settings.prompt, max_tokens=study.answer_tokens(run), record=True
    )
    facts = (run.facts or {}) | {
        "made_with": made_with(study.settings.threads, "scores", "answers"),
        "file_bytes": study.model.file_bytes,
    }
    for event in named(texts, events):
        if isinstance(event, EvaluationStart):
            facts["kv_cache_bytes"] = event.kv_cache_bytes[0]
            _note_texts(study, event.chunks)
        elif isinstance(event, MeasuredAnswer):
            facts |= answer_facts(event, study.settings.prompt, study.settings.answer_tokens)
        else:
            text, (scores,) = texts[event.text], event.scores
            where = f"chunk {event.number} of {text.name}"
            require_finite("the source's negative log-likelihood", scores.nll, where)
            study.ledger.add_chunk(text_key(study.base_key, text.sha256), event.number, scores, event.seconds[0])
            advance()
    study.ledger.set_run(Run(study.base_key, "done", None, facts))


def _note_texts(study: Study, chunks: Sequence[int]) -> None:
    """Write down how many chunks there are of each text, where so many were asked for."""
    known = known_texts(study.ledger.facts())
    for text, count in zip(study.settings.texts, chunks, strict=True):
        found = {"name": text.name, "sha256": text.sha256, "chunks": count, "chunks_asked": study.settings.chunks}
        if found["chunks_asked"] >= known[text.sha256]["chunks_asked"]:
            known[text.sha256] = found
    study.ledger.set_facts({"texts": list(known.values())})
