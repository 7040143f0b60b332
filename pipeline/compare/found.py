"""What a study found, as types: the study, its source and its cells."""

from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.scores import Scores
from pipeline.evaluation.statistics import Quartiles
from pipeline.tabular import Tabular
from pipeline.tasks.items import TaskResult
from pipeline.tasks.passkey import PasskeyShare

KLD = ("kld_mean", "kld_low", "kld_high")


@dataclass(frozen=True)
class TextScores(Scores):
    """The scores on one text, of so many chunks; `kld_chunks` has the KL divergence of each, to pair cells by."""

    text: str
    text_sha256: str
    chunks: int
    kld_chunks: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """By how many nats a token a cell loses more than another, paired by chunk, and the 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Interaction:
    """The KL divergence of surgery and quantisation together over the sum of each alone, and its 95 % interval."""

    ratio: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class GroupRank:
    """The rank that a group of projections kept, of how many, and the share of the variance that it explains."""

    layer: int
    layers: list[int]
    group: str
    rank: int
    explained: float
    full_rank: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of the file, of the file if the factors were stored, and of the KV cache for a chunk; numbers stored.

    factors, dense: numbers of the operated matrices as factors, and as they are; None where nothing was operated on
    """

    file_bytes: int | None
    kv_cache_bytes: int | None
    factored_bytes: int | None
    factors: int | None
    dense: int | None


@dataclass(frozen=True)
class RunFacts:
    """How a measurement went.

    prompt_speed, generation_speed: tokens a second
    answer: the text of each token; answer_failure: why there is none
    first_difference: the first token of the answer that the source's answer does not share, None if none
    seconds: of decoding
    made_with: code, libraries, processor and threads, as `pipeline.revision.made_with` notes them
    """

    prompt_speed: Quartiles | None
    generation_speed: Quartiles | None
    answer: list[str] | None
    answer_failure: str | None
    first_difference: int | None
    seconds: float | None
    machine: str | None
    threads: int | None
    made_with: dict[str, Any] | None


@dataclass(frozen=True)
class TasksFound:
    """What a model can still do: each metric of the tasks that it was asked, and the passkeys that it found.

    A cell's are held against the source's, over the same items; what was asked of other items is not among them.
    """

    tasks: tuple[TaskResult, ...]
    passkeys: tuple[PasskeyShare, ...]


@dataclass(frozen=True)
class CellResult(Scores, Sizes, RunFacts, TasksFound):
    """One cell: what it is, how far it is measured, and what came out; NaN and None stand for what is not known.

    status: pending, running, done, stopped (early, for `reason`) or failed
    texts: the scores of each text, in the study's order; worst: the name of the one that loses most
    commands: what makes its model by hand, and runs it
    chunks: measured, of all texts
    over_quant: against the same quantisation without surgery
    pareto: the FRONTS that it is on
    damage: whether it is one of `surgery inspect --damage`, which are compared with nothing
    """

    label: str
    status: str
    reason: str | None
    method: str
    targets: str | None
    threshold: float | None
    rank: int | None
    budget: float | None
    metric: str | None
    mean: str | None
    layers: str | None
    group_layers: str | None
    outtype: str | None
    seed: int | None
    cache: float | None
    quant: str
    cache_type: str
    commands: list[str]
    chunks: int
    texts: tuple[TextScores, ...]
    worst: str | None
    over_quant: Difference | None
    interaction: Interaction | None
    ranks: list[GroupRank] | None
    pareto: tuple[str, ...]
    damage: bool


@dataclass(frozen=True)
class BaseResult(Scores, Sizes, RunFacts, TasksFound):
    """The source itself: the perplexities are its own; there is nothing that it diverges from."""

    texts: tuple[TextScores, ...]


@dataclass(frozen=True)
class StudyResult(Tabular):
    """A study: what all cells share, the source, the cells, and by metric what was seen of the source's subspaces."""

    study: dict[str, Any]
    base: BaseResult
    cells: tuple[CellResult, ...]
    subspaces: dict[str, Any]

    def headline(self) -> str:
        return (
            f"{self.study['model']} on {self.study['text']}; KL divergence in nats a token, 95 % intervals over chunks"
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row a cell: what it costs, what it loses, and what it can still do."""
        names = ("label", "status", "chunks", "file_bytes", "kv_cache_bytes", "ppl", *KLD, "same_top")
        asked = {f"{task.task} {task.metric}": None for task in self.base.tasks}
        return [
            {name: getattr(cell, name) for name in names}
            | asked
            | {f"{task.task} {task.metric}": task.value.mean for task in cell.tasks}
            for cell in self.cells
        ]
