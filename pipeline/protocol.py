"""What every operation on a model answers, so that studies need not know which there are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pipeline.gguf_file.reader import GGUFModel
from pipeline.observations.statistics_file import Calibration


class Operation(Protocol):
    """The choices of one operation: a frozen dataclass, each field declared with `pipeline.choices`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def method(self) -> str:
        """Its name among the methods of a grid."""

    @property
    def metric(self) -> str:
        """What it needs calibration statistics for; `weights` if it does without."""

    @property
    def roles(self) -> frozenset[str]:
        """Of which projections, members of `pipeline.targets.TARGETS`, it must know what errors cost, or what they read."""

    @property
    def label(self) -> str:
        """The choices in a few words, without what is usual."""

    def for_cache(self, cache_type: str) -> "Operation":
        """The operation for a model that runs with this type of KV cache."""

    def effective(self) -> "Operation | None":
        """With what makes no difference set to its default; None if nothing is changed."""

    def family(self) -> "Operation":
        """Equal for all operations that are performed together for the price of one."""


class Report(Protocol):
    """What was done."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""


@dataclass(frozen=True)
class CellFile:
    """A file to measure: `performed` is what the operation wrote of `model`, the source or its quantisation `quant`."""

    model: Path
    performed: Path
    quant: str | None
    importance: Path | None
    threads: int


@dataclass(frozen=True)
class OperationKind:
    """A kind of operation, with the class of its choices.

    command: what `surgery` calls it; quantises: whether that command has --quant
    methods: the names by which a grid has it
    algorithm: what `pipeline.revision` calls the code that decides its numbers
    of_grid: the operations that a grid's choices make, see `pipeline.compare.grid.Grid`
    check: raises UsageError or SurgeryError for what a model cannot have, before anything takes long
    perform: writes a family's operations on a model to their files, with so many threads
    cell_file: makes the file that is measured at a path; gives that path, or one that is there already
    replaced: the tensors of a performed file that stand in the place of the source's, by name
    growth: by how many bytes the source becomes larger, its types kept
    seconds: about how long a family takes, without calibrating; 0 where that is not known
    """

    plan: type
    command: str
    quantises: bool
    methods: tuple[str, ...]
    algorithm: str
    of_grid: Callable[[Mapping[str, Any]], Sequence[Operation]]
    check: Callable[[GGUFModel, Any], object]
    perform: Callable[[GGUFModel, Mapping[Path, Any], Calibration | None, int], Sequence[Report]]
    cell_file: Callable[[CellFile, Path], Path]
    replaced: Callable[[GGUFModel], Sequence[str]]
    growth: Callable[[GGUFModel, Any], int]
    seconds: Callable[[GGUFModel, Sequence[Any]], float] = lambda model, plans: 0.0
