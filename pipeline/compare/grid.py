"""The grid: products of choices as cells, presets, and the file that a grid is kept in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.compare.cell import AS_IT_IS, CACHE_TYPES, LATENT, Cell, Operation
from pipeline.decompose.methods import METHODS
from pipeline.errors import UsageError
from pipeline.files.output_file import complete_or_absent
from pipeline.latent.plan import LatentPlan
from pipeline.operation.plan import Plan
from pipeline.quantization import known_type


@dataclass(frozen=True)
class Grid:
    """Choices whose product is measured: every operation in every quantisation with every type of KV cache.

    `group_layers` are for the methods that share components between layers, and for them alone, `caches` for `latent`:
    shares of the KV cache. Of thresholds, ranks and budgets any may be given; each value makes cells of its own.
    """

    methods: Sequence[str] = ("shared-kv", "separate")
    targets: Sequence[str] = ("qkv",)
    thresholds: Sequence[float] = ()
    ranks: Sequence[int] = ()
    budgets: Sequence[float] = ()
    metrics: Sequence[str] = ("weights",)
    means: Sequence[str] = ("keep",)
    layers: str = "all"
    group_layers: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    caches: Sequence[float] = (0.5,)
    quants: Sequence[str] = (AS_IT_IS, "Q4_K_M")
    cache_types: Sequence[str] = ("f16",)

    def plans(self) -> list[Operation]:
        """The operations. Raises UsageError for a value that no plan can have."""
        latent = [LatentPlan(cache=cache) for cache in self.caches] if LATENT in self.methods else []
        return [*self._low_rank_plans(), *latent]

    def _low_rank_plans(self) -> list[Plan]:
        rules: list[dict[str, Any]] = [
            *({"threshold": value} for value in self.thresholds),
            *({"threshold": None, "rank": value} for value in self.ranks),
            *({"threshold": None, "budget": value} for value in self.budgets),
        ]
        known = [method for method in self.methods if method in METHODS]
        if self.group_layers and not any(METHODS[method].across_layers for method in known):
            raise UsageError("--group-layers: no method of the grid shares components between layers")
        methods = [method for method in self.methods if method != LATENT]
        choices = product(methods, self.targets, self.metrics, self.means, self.seeds, rules)
        return [
            Plan(
                method=method, targets=targets, metric=metric, mean=mean, seed=seed,
                layers=self.layers, group_layers=groups, **rule,
            )
            for method, targets, metric, mean, seed, rule in choices
            for groups in (self.group_layers if method in known and METHODS[method].across_layers else ()) or (None,)
            if seed == self.seeds[0] or method == "random"
        ]  # fmt: skip

    def cells(self) -> list[Cell]:
        """The source in every quantisation first, then the operations. Raises UsageError for unknown types."""
        quants = [known_quant(quant) for quant in self.quants]
        for cache_type in self.cache_types:
            if cache_type not in CACHE_TYPES:
                raise UsageError(f"--cache-types {cache_type}: expected one of {', '.join(CACHE_TYPES)}")
        return [
            Cell(plan, quant, cache) for plan, quant, cache in product((None, *self.plans()), quants, self.cache_types)
        ]


def known_quant(name: str) -> str:
    """AS_IT_IS, or the quantiser's own name of a type. Raises UsageError for an unknown one."""
    if name.lower() == AS_IT_IS:
        return AS_IT_IS
    try:
        return known_type(name)
    except UsageError as error:
        raise UsageError(f"--quants {error}; or {AS_IT_IS}, which keeps the types of the source") from None


PRESETS = {
    "quick": [Grid(methods=("shared-kv",), thresholds=(0.99, 0.9, 0.5), quants=(AS_IT_IS, "Q4_K_M"))],
    "original": [
        Grid(
            methods=("separate",), targets=("q",), thresholds=(0.99, 0.975, 0.95), means=("drop",), quants=(AS_IT_IS,)
        ),
        Grid(
            methods=("shared-kv",),
            targets=("q",),
            thresholds=(0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
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
        raise UsageError("the grid is empty: give --thresholds, --ranks or --budgets, or --quants to compare")
    return sorted(cells, key=lambda cell: cell.plan is not None)


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

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--plan {path}: cannot be read: {' '.join(str(error).split())}") from None
    blocks = content.get("grids") if isinstance(content, Mapping) and "grids" in content else [content]
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise UsageError(f"--plan {path}: expected `grids:`, a list of blocks such as --save-plan writes")
    return [Grid(**_choices(path, block)) for block in blocks]


def _choices(path: Path, block: Mapping[str, Any]) -> dict[str, Any]:
    known = {field.name: field.default for field in fields(Grid)}
    kinds = {"thresholds": (int, float), "budgets": (int, float), "caches": (int, float), "ranks": int, "seeds": int}
    for key, value in block.items():
        if key not in known:
            raise UsageError(f"--plan {path}: unknown key {key!r}; known are {', '.join(known)}")
        wanted: Any = kinds.get(key, str)
        values = value if isinstance(value, list) and key != "layers" else [value]
        if not all(isinstance(item, wanted) and not isinstance(item, bool) for item in values):
            raise UsageError(f"--plan {path}: {key}: {value!r} is not what {key} can be")
    return {
        key: value if key == "layers" else tuple(value if isinstance(value, list) else [value])
        for key, value in block.items()
    }
