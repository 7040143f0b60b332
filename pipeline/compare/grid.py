"""The grid: products of choices as cells, presets, and the file that a grid is kept in."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.cache_types import CACHE_TYPES
from pipeline.choices import CHOICE, Choice, choices_of
from pipeline.compare.cell import AS_IT_IS, NO_METHOD, Cell
from pipeline.compare.operations import KINDS, KNOWN_METHODS, kind_of
from pipeline.decompose.methods import METHODS, METRICS
from pipeline.errors import UsageError, no_file
from pipeline.files.output_file import complete_or_absent
from pipeline.gguf_file.reader import GGUFModel
from pipeline.latent.plan import METHODS as LATENT_METHODS
from pipeline.latent.plan import LatentPlan
from pipeline.operation.plan import RANK_RULES, Plan, idle_method, simpler_method
from pipeline.protocol import Operation
from pipeline.quantization import known_type
from pipeline.targets import target_roles
from pipeline.tasks.choices import TaskChoices, chosen_tasks

HELP = "help"  # the key of a field's metadata: for the command line, without the default


def _several(default: Any, plan: type, name: str, help: str) -> Any:
    """A field with several values of a plan's choice `name`."""
    return field(default=default, metadata={CHOICE: choices_of(plan)[name][0], HELP: help})


@dataclass(frozen=True)
class CellChoices:
    """Choices whose product is measured: every operation in every quantisation with every type of KV cache.

    Method `none` stands for no operation: alone, quantisations and types of the cache are all that is measured.
    `group_layers` are for the methods that share components between layers, and for them alone, `caches`, shares of the
    KV cache, and `outtypes` for latents. Of thresholds, ranks and budgets any may be given; each value makes cells of its
    own.
    """

    methods: Sequence[str] = field(
        default=("shared-kv", "separate"),
        metadata={
            CHOICE: Choice(str, "", names=(*KNOWN_METHODS, NO_METHOD)),
            HELP: " none: quantisations and caches without surgery.",
        },
    )
    targets: Sequence[str] = _several(("qkv",), Plan, "targets", "Such as qkv,kv or o,gate+up,ffn.")
    thresholds: Sequence[float] = _several(
        (),
        Plan,
        "threshold",
        "Shares of the variance to keep; if neither these nor `ranks` nor `budgets` are given, 0.99,0.9,0.5.",
    )
    ranks: Sequence[int] = _several((), Plan, "rank", "Components to keep, such as 32,64.")
    budgets: Sequence[float] = _several((), Plan, "budget", "Shares of the stored numbers to keep, such as 0.5,0.75.")
    metrics: Sequence[str] = _several(("weights",), Plan, "metric", "")
    means: Sequence[str] = _several(("keep",), Plan, "mean", "")
    layers: str = _several("all", Plan, "layers", "Layers to operate on, such as 0-10,12.")
    group_layers: Sequence[str] = _several(
        (), Plan, "group_layers", "Which layers share components, for method cross-layer: such as 2,5,all,similar:2."
    )
    caches: Sequence[float] = _several(
        (0.5,), LatentPlan, "cache", "Shares of the KV cache to keep, for methods latent and transmla."
    )
    outtypes: Sequence[str] = _several(("auto",), LatentPlan, "outtype", " For methods latent and transmla.")
    seeds: Sequence[int] = _several((0,), Plan, "seed", "Seeds of the random control.")
    quants: Sequence[str] = field(
        default=(AS_IT_IS, "Q4_K_M"),
        metadata={CHOICE: Choice(str, ""), HELP: "source (types as they are), F16, Q8_0, Q4_K_M, ..."},
    )
    cache_types: Sequence[str] = field(
        default=("f16",),
        metadata={CHOICE: Choice(str, "", names=CACHE_TYPES), HELP: " Latents are converted for each."},
    )


WHOSE: dict[str, frozenset[str]] = {
    **dict.fromkeys((f"{rule}s" for rule in RANK_RULES), frozenset(METHODS)),
    **dict.fromkeys(("targets", "metrics", "means", "layers"), frozenset(METHODS)),
    "group_layers": frozenset(name for name, method in METHODS.items() if method.across_layers),
    "seeds": frozenset(name for name, method in METHODS.items() if method.random),
    **dict.fromkeys(("caches", "outtypes"), frozenset(LATENT_METHODS)),
}
"""The methods that have a choice, of those that not all have."""


@dataclass(frozen=True)
class Grid(TaskChoices, CellChoices):
    """Choices whose product is measured, see `CellChoices`, and the tasks that all cells of a study are asked."""

    def uses(self, name: str) -> bool:
        """Whether one of the methods has the choice `name`."""
        return name not in WHOSE or not WHOSE[name].isdisjoint(self.methods)

    def plans(self) -> list[Operation]:
        """The operations. Raises UsageError for a value that no plan can have, or that none of the methods uses."""
        for name in WHOSE:
            if not self.uses(name) and list(getattr(self, name)) != list(getattr(CellChoices, name)):
                raise idle_choice(name)
        methods = [method for method in self.methods if method != NO_METHOD and not self._left_out(method)]
        with _plural_names():
            return [plan for kind in KINDS for plan in kind.of_grid(asdict(replace(self, methods=methods)))]

    def _left_out(self, method: str) -> bool:
        """Whether a default method shares nothing of the targets. Raises UsageError for another one, and an unknown one."""
        kind_of(method)
        same = [method in METHODS and simpler_method(method, target_roles(targets)) for targets in self.targets]
        if all(same) and list(self.methods) != list(Grid.methods):
            raise idle_method(method, f"the targets {', '.join(self.targets)}", str(same[0]), "methods")
        return all(same)

    def cells(self) -> list[Cell]:
        """The source in every quantisation first, then the operations. Raises UsageError for unknown types."""
        quants = [known_quant(quant) for quant in self.quants]
        for cache_type in self.cache_types:
            if cache_type not in CACHE_TYPES:
                raise UsageError.of("cache_types", cache_type, f"expected one of {', '.join(CACHE_TYPES)}")
        return [
            Cell(plan and plan.for_cache(cache), quant, cache)
            for plan, quant, cache in product((None, *self.plans()), quants, self.cache_types)
        ]


def idle_choice(name: str) -> UsageError:
    """A choice that was made and that no method of a grid uses."""
    methods = ", ".join(sorted(WHOSE[name]))
    return UsageError(f"`{name}`: none of the `methods` uses it; add one of {methods}, or leave it out", argument=name)


def known_quant(name: str) -> str:
    """AS_IT_IS, or the quantiser's own name of a type. Raises UsageError for an unknown one."""
    if name.lower() == AS_IT_IS:
        return AS_IT_IS
    try:
        return known_type(name)
    except UsageError as error:
        raise UsageError(
            f"`quants` {error}; or {AS_IT_IS}, which keeps the types of the source", argument="quants"
        ) from None


PRESETS = {
    "quick": [Grid(methods=("shared-kv",), thresholds=(0.99, 0.9, 0.5), quants=(AS_IT_IS, "Q4_K_M"))],
    "original": [
        Grid(
            methods=("separate",),
            targets=("q",),
            thresholds=(0.99, 0.975, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
            means=("drop",),
            quants=(AS_IT_IS,),
        ),
    ],
}
"""quick: a first look; original: what the script that this began with published, which changed q and lost the mean."""


def grid_cells(grids: Iterable[Grid]) -> list[Cell]:
    """All cells, each once, those without surgery first. Raises UsageError when no cell operates or quantises."""
    cells = list(dict.fromkeys(cell for grid in grids for cell in grid.cells() if cell != Cell(None)))
    if not cells:
        raise UsageError(
            "the grid is empty: give `thresholds`, `ranks` or `budgets` for its methods, or `quants` or `cache_types`"
        )
    return sorted(cells, key=lambda cell: cell.plan is not None)


def check_cells(model: GGUFModel, cells: Iterable[Cell]) -> None:
    """Raise UsageError or SurgeryError for an operation that cannot be performed on `model`, before anything takes long."""
    with _plural_names():
        for plan in dict.fromkeys(cell.plan for cell in cells if cell.plan):
            kind_of(plan.method).check(model, plan)


@contextmanager
def _plural_names() -> Iterator[None]:
    """What is wrong with a plan's `method` is said of a grid's `methods`."""
    try:
        yield
    except UsageError as error:
        plural = f"{error.argument}s"
        if plural not in {field.name for field in fields(Grid)}:
            raise
        raise UsageError(str(error).replace(f"`{error.argument}", f"`{plural}", 1), argument=plural) from None


def grid_tasks(grids: Iterable[Grid]) -> TaskChoices:
    """What the cells are asked, of all grids alike. Raises UsageError for grids that ask different things."""
    asked = list(dict.fromkeys(tasks for grid in grids if (tasks := chosen_tasks(grid))))
    if len(asked) > 1:
        raise UsageError(
            "`tasks`: the blocks of a grid ask different things, and a study asks all its cells the same; give each the"
            " same, or one block alone",
            argument="tasks",
        )
    return asked[0] if asked else TaskChoices()


def needed_metric(cells: Iterable[Cell]) -> str:
    """What calibration statistics the cells need: the metric that asks most of them."""
    metrics = ["weights", *(cell.plan.metric for cell in cells if cell.plan)]
    return max(metrics, key=list(METRICS).index)  # they are listed by what they need


def needed_roles(cells: Iterable[Cell]) -> frozenset[str]:
    """The projections of which the cells need statistics."""
    return frozenset(role for cell in cells if cell.plan and cell.calibrated for role in cell.plan.roles)


def save_grids(path: Path, grids: Sequence[Grid], *, force: bool) -> None:
    """Write a grid file. Raises UsageError for an output that cannot be."""
    import yaml

    defaults = asdict(Grid())
    blocks = [
        {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(grid).items()
         if value != defaults[key] or key in ("methods", "quants")}
        for grid in grids
    ]  # fmt: skip
    with complete_or_absent(path, force=force) as temporary:
        temporary.write_text(yaml.safe_dump({"grids": blocks}, sort_keys=False, default_flow_style=None))


def load_grids(path: Path) -> list[Grid]:
    """Read a grid file: `grids`, a list of blocks, or one block. Raises UsageError that names what is wrong in it."""
    import yaml

    if not path.is_file():
        raise UsageError.of("plan_file", path, f"{no_file(path)}; expected a grid such as `save_plan` writes")
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError.of("plan_file", path, f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError.of("plan_file", path, f"cannot be read: {' '.join(str(error).split())}") from None
    blocks = content.get("grids") if isinstance(content, Mapping) and "grids" in content else [content]
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise UsageError.of("plan_file", path, "expected `grids:`, a list of blocks such as `save_plan` writes")
    return [Grid(**_choices(path, block)) for block in blocks]


def _choices(path: Path, block: Mapping[str, Any]) -> dict[str, Any]:
    known = {field.name: field.metadata[CHOICE] for field in fields(Grid)}
    single = {field.name for field in fields(Grid) if not isinstance(field.default, tuple)}
    found = {}
    for key, value in block.items():
        if key not in known:
            raise UsageError.of("plan_file", path, f"unknown key {key!r}; known are {', '.join(known)}")
        values = value if isinstance(value, list) and key not in single else [value]
        if not all(known[key].allows(item) for item in values):
            raise UsageError.of("plan_file", path, f"{key}: {value!r} is not what {key} can be")
        found[key] = value if key in single else tuple(values)
    return found
