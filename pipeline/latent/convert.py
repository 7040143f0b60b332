"""Convert a Llama to latent attention: a file of `deepseek2`'s, some layers at a time, in the memory of these."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from native.model import default_threads
from pipeline import __version__
from pipeline.files.output_file import check_output
from pipeline.gguf_file.encode import encode_rows
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry
from pipeline.gguf_file.provenance import PREFIX, earlier_operations
from pipeline.gguf_file.reader import GGUFModel
from pipeline.gguf_file.writer import GGUFWriter, TensorDeclaration, create_gguf
from pipeline.latent.architecture import (
    GATE,
    RESIDUAL_SCALE,
    UP,
    declare_tensors,
    gate_beside,
    grows,
    latent_metadata,
    layer_tensors,
    shrinks,
)
from pipeline.latent.byte_budget import choose_within_bytes
from pipeline.latent.equalise import equalise_rotary
from pipeline.latent.layer import align_layer, compress_layer, measured_distances, output_projection, sampled_attention
from pipeline.latent.narrow import narrow_queries
from pipeline.latent.new_types import importances
from pipeline.latent.plan import PUBLISHED, CacheLayout, LatentPlan, bits_per_number, choose_layout
from pipeline.latent.queries import refit_queries
from pipeline.latent.samples import sample_inputs
from pipeline.latent.scaled import read_scaled
from pipeline.latent.source import LatentSource, require_convertible
from pipeline.latent.transmla import transmla_layer
from pipeline.latent.values import refit_values
from pipeline.layers import AttentionLayers, Layer
from pipeline.observations.statistics_file import Calibration, calibration_facts, require_fit
from pipeline.parallel import side_by_side
from pipeline.progress import Progress, silent
from pipeline.resources import peak_rss_bytes
from pipeline.tabular import Tabular


@dataclass(frozen=True)
class LatentLayer:
    """What happened to a layer.

    energy_kept: the share, in [0, 1], of what the latent stands for, weighted by what errors cost
    score_error_before, score_error: of the attention scores over sampled text, as a share of their variance, before and
        after the queries were refitted, the same by a method that does not
    """

    layer: int
    energy_kept: float
    score_error_before: float
    score_error: float


@dataclass(frozen=True)
class LatentReport(Tabular):
    """What `convert_to_latent` did; `to_dict` is the JSON object that the command prints.

    source_numbers: what the source caches per token and layer; rope_deviation: how far the frequency of a rotated pair is
        off at most, radians a token; output_bytes: of the file; seconds: of all
    """

    output: str
    plan: LatentPlan
    layout: CacheLayout
    source_numbers: int
    rope_deviation: float
    layers: tuple[LatentLayer, ...]
    output_bytes: int
    seconds: float

    @property
    def share(self) -> float:
        """The cache's share of the source's numbers."""
        return self.layout.cached_numbers / self.source_numbers

    def headline(self) -> str:
        return (
            f"{self.output}: {self.layout.cached_numbers} numbers per token and layer, {self.share:.0%} of the source's"
        )

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row a layer."""
        return [asdict(layer) for layer in self.layers]

    @property
    def byte_share(self) -> float:
        """The cache's share of the bytes of the source's, if that is one of F16."""
        return self.share * bits_per_number(self.plan.cache_type) / 16

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": self.output,
            **asdict(self.plan),
            "cached_numbers": self.layout.cached_numbers,
            "source_cached_numbers": self.source_numbers,
            "share": self.share,
            "byte_share": self.byte_share,
            "latent_rank": self.layout.rank,
            "rotary_numbers": 2 * self.layout.pairs,
            "rope_deviation": self.rope_deviation,
            "layers": [asdict(layer) for layer in self.layers],
            "output_bytes": self.output_bytes,
            "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }


def convert_to_latent(
    model: GGUFModel,
    output: Path,
    plan: LatentPlan,
    calibration: Calibration,
    *,
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
    sampling: Progress = silent,
) -> LatentReport:
    """Write `output`: `model` as a `deepseek2` model that caches what `plan` says instead of keys and values.

    `model` is run over some of the text of its `calibration`; `sampling` counts chunks of that, `progress` layers.
    Raises SurgeryError for a model that cannot be converted, UsageError for a plan or calibration that does not fit,
    NativeError when llama.cpp cannot run the model; all before anything is written.
    """
    started = time.perf_counter()
    source = require_convertible(model)
    choose_layout(plan, source)
    check_output(output, force=force, sources=model.paths)
    require_fit(calibration, model)
    AttentionLayers(model, calibration, plan.roles).require_sensitivities()
    attention = AttentionLayers(model, calibration)
    if plan.cache_bytes is not None:
        plan = choose_within_bytes(plan, source, attention.values())
    layout = choose_layout(plan, source)
    layers: list[LatentLayer] = []
    declared, new = declare_tensors(model, source, layout, plan.outtype)
    metadata = [*latent_metadata(model, source, layout), *_provenance(model, plan, layout, source, calibration)]
    with ExitStack() as stack:
        samples = stack.enter_context(sample_inputs(model, calibration, threads, sampling))
        writer = stack.enter_context(
            create_gguf(output, metadata, declared, alignment=model.alignment, force=force, sources=model.paths)
        )
        _carry_over(model, writer, declared, new)
        fitted = side_by_side(
            lambda number: _fit_layer(source, attention[number], plan.method, layout, samples.of_layer(number)),
            source.layers,
            threads or default_threads(),
        )
        for number, (tensors, layer) in zip(source.layers, fitted, strict=True):
            progress(number, len(source.layers), "")
            layers.append(layer)
            for name, (values, importance) in tensors.items():
                writer.put(name, encode_rows(name, values, new[name].type, importance))
        progress(len(source.layers), len(source.layers), "")
    return LatentReport(
        str(output), plan, layout, source.cached_numbers, source.slots.first(layout.pairs).deviation, tuple(layers), output.stat().st_size,
        time.perf_counter() - started,
    )  # fmt: skip


def _fit_layer(
    source: LatentSource, layer: Layer, method: str, layout: CacheLayout, inputs: np.ndarray
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray | None]], LatentLayer]:
    """A layer's new tensors, float32, made by `method` for the source's attention over `inputs`, float32 (chunks, n, d).

    Each with its columns' importance, None for norms.
    """
    attention = sampled_attention(source, layer, inputs)
    queries, moment = attention.q.astype(np.float64), layer.moments("k").inputs
    if method == PUBLISHED:
        weights, kept, before = transmla_layer(source, layer, layout, attention)
        equalise_rotary(weights, queries, moment)
        after = before
    else:
        aligned = align_layer(source, layer, layout, measured_distances(attention))
        weights, kept = compress_layer(source, aligned, layout.rank, layer.number)
        equalise_rotary(weights, queries, moment)
        before, after = refit_queries(weights, attention)
        refit_values(weights, attention, output_projection(source, layer))
    square = float(np.sum((weights.latent @ moment) * weights.latent)) / layout.rank
    narrow, latent_query = narrow_queries(weights, queries, moment, layout.features)
    counts = importances(weights, narrow, moment)
    tensors = {
        f"blk.{layer.number}.{name}.weight": (values, counts.get(name))
        for name, values in layer_tensors(source, queries, narrow, latent_query, weights, square)
    }
    return tensors, LatentLayer(layer.number, kept, before, after)


def _carry_over(
    model: GGUFModel, writer: GGUFWriter, declared: list[TensorDeclaration], new: dict[str, TensorDeclaration]
) -> None:
    """Write all tensors but the new ones: as they are, or scaled with the residual stream."""
    for tensor in declared:
        if tensor.name in new or (tensor.name.endswith(GATE) and tensor.name not in model.tensors):
            continue
        if grows(tensor.name):
            writer.put(tensor.name, read_scaled(model, tensor.name, RESIDUAL_SCALE))
        elif shrinks(model, tensor.name):
            writer.put(tensor.name, read_scaled(model, tensor.name, 1 / RESIDUAL_SCALE))
        elif tensor.name.endswith(UP) and gate_beside(tensor.name) not in model.tensors:
            halves = np.split(model.read_raw(tensor.name), 2)  # llama.cpp takes the first for the gate
            for name, half in zip((gate_beside(tensor.name), tensor.name), halves, strict=True):
                writer.put(name, half)
        else:
            writer.copy_from(model, tensor.name)


def _provenance(
    model: GGUFModel, plan: LatentPlan, layout: CacheLayout, source: LatentSource, calibration: Calibration
) -> Iterable[MetadataEntry]:
    values = {
        "version": __version__,
        "method": plan.method,
        "cache": float(plan.cache),
        "cached_numbers": layout.cached_numbers,
        "source_cached_numbers": source.cached_numbers,
        "rotary_numbers": 2 * layout.pairs,
        "cache_type": plan.cache_type,
        "rope_deviation": source.slots.first(layout.pairs).deviation,
        **{f"calibration.{key}": value for key, value in calibration_facts(calibration).items()},
        "source.name": model.name,
        "source.sha256": calibration.origin.model_sha256,
        **earlier_operations(model),
    }
    return [metadata_entry(PREFIX + key, value) for key, value in values.items()]
