"""Data goes one way: no room imports one that imports it, and nothing points back from llama.cpp or at the command line."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("surgery", "pipeline", "native")


def room(module: str) -> str:
    """A room is a folder of `pipeline`, or a file beside them; `native` and `surgery` are one each."""
    parts = module.split(".")
    return parts[0] if parts[0] != "pipeline" else ".".join(parts[:2])


def imports() -> dict[str, set[str]]:
    """For each room the rooms that it imports, wherever in its files."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    modules = (
                        [f"pipeline.{name.name}" for name in node.names] if node.module == "pipeline" else [node.module]
                    )
                elif isinstance(node, ast.Import):
                    modules = [name.name for name in node.names]
                else:
                    continue
                found[here] |= {room(name) for name in modules if name.split(".")[0] in PACKAGES} - {here}
    return found


def test_no_two_rooms_import_each_other_around_any_corner() -> None:
    order = list(TopologicalSorter(imports()).static_order())  # raises CycleError, which names the rooms
    assert {"native", "pipeline.decompose", "pipeline.compare", "pipeline.cli", "surgery"} <= set(order)
    assert order.index("native") < order.index("pipeline.compare") < order.index("pipeline.cli")


def test_native_knows_nothing_of_the_pipeline_nor_the_pipeline_of_what_calls_it() -> None:
    graph = imports()
    assert graph["native"] == set()
    callers = {here for here, there in graph.items() if "pipeline.cli" in there}
    assert callers <= {"pipeline.__main__"}
    assert {here for here, there in graph.items() if "surgery" in there} <= {"surgery"}
