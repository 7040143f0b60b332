"""All groups decomposed, several at once, each layer read once for its groups; twice gone through for a budget."""

from collections.abc import Iterator, Sequence

from pipeline.layers import AttentionLayers, Layer
from pipeline.operation.groups import Group
from pipeline.operation.plan import Plan
from pipeline.operation.reconstruct import Decomposition, decompose_group
from pipeline.parallel import side_by_side
from pipeline.resources import array_bytes

MOST_KEPT = 1 << 30  # bytes of decompositions that wait for the ranks of a budget; beyond, groups are decomposed anew


class Decomposer:
    """The decompositions of `groups` for `plans`, see `decompose_group`."""

    def __init__(self, layers: AttentionLayers, groups: Sequence[Group], plans: Sequence[Plan], threads: int) -> None:
        self.layers, self.groups, self.plans, self._threads = layers, groups, plans, threads
        self._kept: dict[Group, Decomposition] = {}

    def decompositions(self) -> Iterator[tuple[Group, Decomposition | None]]:
        """Each group with its decomposition, in their order; what `kept_decompositions` kept is handed over."""

        def work() -> Iterator[tuple[Group, Layer]]:
            for group in self.groups:
                layer = self.layers.block(*group.units[0])  # held until its next group has it, too
                yield group, layer

        def decompose(item: tuple[Group, Layer]) -> tuple[Group, Decomposition | None]:
            group, _ = item
            return group, self._kept.pop(group, None) or decompose_group(self.layers, group, self.plans)

        return side_by_side(decompose, work(), self._threads)

    def kept_decompositions(self) -> Iterator[Decomposition | None]:
        """As `decompositions`, for which the first MOST_KEPT bytes are kept."""
        room = MOST_KEPT
        for group, decomposition in self.decompositions():
            room -= array_bytes(decomposition)
            if decomposition is not None and room >= 0:
                self._kept[group] = decomposition
            yield decomposition
