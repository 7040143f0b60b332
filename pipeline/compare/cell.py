"""One cell of a grid: an operation, a quantisation, a type of KV cache; and the key that its measurement has."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.compare.operations import kind_of, read_operation, written_operation
from pipeline.json_text import sha256_of
from pipeline.protocol import Operation
from pipeline.revision import revisions

AS_IT_IS = "source"  # as a quantisation: every tensor keeps the type that it has in the source
NO_METHOD = "none"  # among the methods: the source itself, in whatever quantisation


@dataclass(frozen=True)
class StudySubject:
    """What all cells of a study have in common, by SHA-256; empty where there is no calibration or imatrix."""

    model_sha256: str
    n_ctx: int
    calibration_sha256: str = ""
    importance_sha256: str = ""


@dataclass(frozen=True)
class Cell:
    """`plan` None: the source itself. `quant` AS_IT_IS or a type of llama.cpp's quantiser; `cache_type` for k and v."""

    plan: Operation | None
    quant: str = AS_IT_IS
    cache_type: str = "f16"

    @property
    def method(self) -> str:
        """The operation's method; `none` for the source itself."""
        return self.plan.method if self.plan else NO_METHOD

    @property
    def calibrated(self) -> bool:
        """Whether the operation needs calibration statistics."""
        return self.plan is not None and self.plan.metric != "weights"

    @property
    def label(self) -> str:
        """Such as `shared-kv 0.9 attention, Q4_K_M, cache q8_0`; what is usual is left out."""
        cache = f"cache {self.cache_type}" if self.cache_type != "f16" else ""
        quant = "" if self.quant == AS_IT_IS else self.quant
        operation = self.plan.label if self.plan else "source"
        if self.plan and self.plan.effective() != self.plan.for_cache(self.cache_type).effective():
            operation += " for another cache"
        return ", ".join(filter(None, (operation, quant, cache)))

    @property
    def alone(self) -> "Cell":
        """The operation without quantisation, of whatever."""
        return Cell(self.plan and self.plan.for_cache("f16"))

    def parameters(self) -> dict[str, Any]:
        """The cell as JSON, from which `Cell.of` makes it again."""
        plan = self.plan and written_operation(self.plan)
        return {"plan": plan, "quant": self.quant, "cache_type": self.cache_type}

    @staticmethod
    def of(parameters: dict[str, Any]) -> "Cell":
        plan = parameters["plan"] and read_operation(parameters["plan"])
        return Cell(plan, parameters["quant"], parameters["cache_type"])

    def key(self, subject: StudySubject) -> str:
        """The name of what is measured of this cell: equal for cells that do the same, such as q alone by two methods.

        It holds all that can change the numbers: the subject, the choices, the revisions of the algorithms that are at
        work and llama.cpp's version. Threads and processor, which change the rounding, are noted beside the numbers.
        """
        plan = effective_plan(self.plan)
        facts = {
            "code": revisions(*algorithms(self)),
            "subject": asdict(subject)
            | ({} if self.calibrated else {"calibration_sha256": ""})
            | ({"importance_sha256": ""} if self.quant == AS_IT_IS else {}),
            **replace(self, plan=plan).parameters(),
        }
        return sha256_of(facts)


def algorithms(cell: Cell) -> tuple[str, ...]:
    """The algorithms that are at work in a cell's numbers, as `pipeline.revision` names them."""
    plan = effective_plan(cell.plan)
    operating = (kind_of(plan.method).algorithm,) if plan else ()
    return ("scores", *operating, *(("quantising",) if cell.quant != AS_IT_IS else ()))


def base_key(subject: StudySubject) -> str:
    """The name of the source's own measurement, with which the cells are compared."""
    return sha256_of(["base", Cell(None).key(subject)])


def text_key(key: str, text_sha256: str) -> str:
    """The name of what is measured under `key` on one text."""
    return sha256_of([key, text_sha256])


def replies_key(key: str) -> str:
    """The name of what is replied under `key` to the questions of tasks."""
    return sha256_of([key, revisions("asking")])


def effective_plan(plan: Operation | None) -> Operation | None:
    """What a cell does to the model, see `Operation.effective`; None if nothing."""
    return plan.effective() if plan else None
