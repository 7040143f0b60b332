"""The operations that a study knows: a further one is a file with its `OperationKind`, and a line here."""

from dataclasses import asdict, fields
from typing import Any

from pipeline.errors import UsageError, suggestion
from pipeline.latent.kind import LATENT
from pipeline.operation.kind import LOW_RANK
from pipeline.protocol import Operation, OperationKind

KINDS = (LOW_RANK, LATENT)
KNOWN_METHODS = tuple(method for kind in KINDS for method in kind.methods)


def kind_of(method: str) -> OperationKind:
    """The kind of operation that has a method of this name. Raises UsageError for an unknown one."""
    for kind in KINDS:
        if method in kind.methods:
            return kind
    raise UsageError.of(
        "method", method, f"expected one of {', '.join(KNOWN_METHODS)}{suggestion(method, KNOWN_METHODS)}"
    )


def written_operation(operation: Operation) -> dict[str, Any]:
    """An operation as JSON, from which `read_operation` makes it again."""
    return {"method": operation.method, **asdict(operation)}


def read_operation(choices: dict[str, Any]) -> Operation:
    """The operation with these `choices`, one of them its method."""
    plan = kind_of(choices["method"]).plan
    names = {field.name for field in fields(plan)}
    operation: Operation = plan(**{name: value for name, value in choices.items() if name in names})
    return operation
