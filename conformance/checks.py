"""What is asked of one architecture: each check works, is refused with a reason, or is wrong."""

import tempfile
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from conformance.outcome import Outcome, WrongError
from conformance.programs import CrashError, ProgramError, Programs
from native.errors import NativeError
from native.generate import SamplingOptions
from native.model import ContextOptions
from pipeline.attention import find_attention, read_projection
from pipeline.calibration.calibrate import calibrate
from pipeline.calibration.metrics import layer_metric
from pipeline.conversation import ask, start_conversation
from pipeline.errors import SurgeryError
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.inputs.texts import Text
from pipeline.inspection import summarise
from pipeline.layers import AttentionLayers
from pipeline.observations.importance_matrix import write_importance_matrix
from pipeline.observations.statistics_file import Calibration
from pipeline.operation.groups import plan_groups
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.quantization import quantize
from pipeline.targets import TARGETS

N_CTX, CHUNKS = 128, 4
RANK = 4
ALL_METHODS = ("shared-gate-up", "shared-experts")  # with which all targets are operated on
EXACT = 1e-6  # nats a token: what evaluating a model against itself may give
MOVED = 2 * EXACT  # what operating at RANK has to cost at least, or the check could not fail


class Subject:
    """One model with what is made of it for several checks."""

    def __init__(self, path: Path, text: Text, programs: Programs, folder: Path) -> None:
        self.model, self.text, self.programs, self.folder = open_gguf(path), text, programs, folder
        self.path, self.text_file, self.logits = path, folder / "text.txt", folder / "logits"
        self.text_file.write_text(text.content)
        self.calibration: Calibration | None = None

    def operated(self, name: str, **choices: object) -> GGUFModel:
        output = self.folder / f"{name}.gguf"
        calibration = self.calibrated() if choices.get("metric", "weights") != "weights" else None
        operate(self.model, output, Plan(**choices), calibration=calibration, threads=1, force=True)  # type: ignore[arg-type]
        return open_gguf(output)

    def calibrated(self) -> Calibration:
        if self.calibration is None:
            self.calibration = calibrate(self.model, self.text, chunks=2, chunk_size=N_CTX, threads=1, roles=TARGETS)
        return self.calibration

    def evaluated(self, model: Path) -> Evaluation:
        options = ContextOptions(n_ctx=N_CTX, threads=1)
        return evaluate(model, self.text, base=self.path, chunks=CHUNKS, options=options)


def inspect(subject: Subject) -> str:
    summary = summarise(subject.model)
    attention = find_attention(subject.model)
    parts = {"+".join(projections) for projections in attention.layers.values()}
    return f"{', '.join(sorted(parts - {'q+k+v'})) or 'q+k+v'} in {len(attention.layers)} of {summary['layers']} layers"


def operate_threshold(subject: Subject) -> str:
    return _compare_with_reference(subject, Plan(threshold=0.5), "threshold")


def operate_rank(subject: Subject) -> str:
    return _compare_with_reference(subject, Plan(rank=RANK), "rank")


def operate_all(subject: Subject) -> str:
    found = [_compare_with_reference(subject, Plan(method, "all", rank=RANK), "all") for method in ALL_METHODS]
    return " and ".join(found)


def _compare_with_reference(subject: Subject, plan: Plan, name: str) -> str:
    """Products with random inputs equal those of a plain singular value decomposition, and the rest its own bytes."""
    model, output = subject.model, subject.folder / f"{name}.gguf"
    operate(model, output, plan, threads=1, force=True)
    operated, layers = open_gguf(output), AttentionLayers(model, roles=plan.roles)
    groups = plan_groups(layers, [(number,) for number in layers], plan)
    rng = np.random.default_rng(0)
    restored: dict[str, np.ndarray] = {}
    for group in groups:
        ranks = np.reshape(operated.get(f"surgery.ranks.{group.name}"), (len(layers), -1))
        stack = np.vstack([read_projection(model, p) for p in group.members]).astype(np.float64)
        mean = stack.mean(axis=0)
        left, values, right = np.linalg.svd(stack - mean, full_matrices=False)
        rank = ranks[sorted(layers).index(group.layer), group.block.expert or 0]
        expected = mean + left[:, :rank] * values[:rank] @ right[:rank]
        found = np.vstack([read_projection(operated, p) for p in group.members])
        inputs = rng.standard_normal((stack.shape[1], 8))
        error = np.linalg.norm((found - expected) @ inputs) / np.linalg.norm(stack @ inputs)
        if not error < 1e-5:
            raise WrongError(f"{group.name} of {group.described_layers}: products differ by {error:.1e} of their size")
        for projection in group.members:
            whole = restored.setdefault(projection.tensor, operated.read(projection.tensor))
            place = whole if projection.block.expert is None else whole[projection.block.expert]
            projection.put(place, read_projection(model, projection))
    for tensor in model.tensors:
        same = (
            np.array_equal(restored[tensor], model.read(tensor))
            if tensor in restored
            else np.array_equal(operated.read_raw(tensor), model.read_raw(tensor))
        )
        if not same:
            raise WrongError(f"{tensor}: what is not operated on has changed")
    return f"{len(groups)} groups"


def eval_itself(subject: Subject) -> str:
    result = subject.evaluated(subject.path)
    if not abs(result.kld_mean) < EXACT:
        raise WrongError(f"KL divergence from itself is {result.kld_mean:.2e}")
    own = subject.programs.perplexity(subject.path, subject.text_file, N_CTX, CHUNKS, subject.logits)
    if not abs(own / result.ppl - 1) < 1e-3:
        raise WrongError(f"perplexity {result.ppl:.4f}, and {own:.4f} by llama-perplexity")
    return f"perplexity {result.ppl:.2f}"


def eval_operated(subject: Subject) -> str:
    operated = subject.folder / "rank.gguf"
    nats = subject.evaluated(operated).kld_mean
    if not nats > MOVED:
        raise WrongError(
            f"operating at rank {RANK} costs {nats:.2e} nats a token: nothing that matters was operated on"
        )
    own = subject.programs.divergence(operated, subject.text_file, N_CTX, CHUNKS, subject.logits)
    if not abs(own - nats) < 0.02 * nats + 1e-4:
        raise WrongError(f"KL divergence {nats:.5f}, and {own:.5f} by llama-perplexity")
    return f"KL {nats:.4f}"


def calibrate_it(subject: Subject) -> str:
    calibration = subject.calibrated()
    output = subject.folder / "ours.imatrix.gguf"
    write_importance_matrix(calibration, output, force=True, sources=())
    ours = _sums_of_squares(open_gguf(output))
    scratch = subject.folder / "theirs.imatrix.gguf"
    try:
        theirs = _sums_of_squares(
            open_gguf(subject.programs.importance_matrix(subject.path, subject.text_file, N_CTX, 2, scratch))
        )
    except CrashError as error:
        return f"not compared, {error}"
    if missing := theirs.keys() - ours.keys():
        raise WrongError(f"llama-imatrix has {min(missing)}, and {len(missing) - 1} more that are lacking here")
    for name, values in theirs.items():
        difference = np.linalg.norm(ours[name] - values) / (np.linalg.norm(values) or 1)
        if ours[name].shape != values.shape or not difference < 1e-3:
            raise WrongError(f"{name} differs from llama-imatrix by {difference:.1e} of its size")
    return f"{len(theirs)} sums of squares"


def _sums_of_squares(file: GGUFModel) -> dict[str, np.ndarray]:
    return {name: file.read(name).ravel() for name in file.tensors if name.endswith((".in_sum2", ".counts"))}


def metric_inputs(subject: Subject) -> str:
    """By its own measure, better than without a metric."""
    weighted = subject.operated("inputs", targets="all", rank=RANK, metric="inputs", mean="none")
    plain = subject.operated("plain", targets="all", rank=RANK, mean="none")
    layers = AttentionLayers(subject.model, subject.calibrated(), TARGETS)
    for group in plan_groups(layers, [(number,) for number in layers], Plan(targets="all", rank=RANK)):
        [projection, *others] = group.members
        if others:
            continue
        metric = layer_metric("inputs", layers.block(group.layer, group.block), group.roles)
        assert metric is not None
        original = read_projection(subject.model, projection)
        own, other = (metric.error(read_projection(model, projection) - original) for model in (weighted, plain))
        if not own <= other * (1 + 1e-3) + 1e-9 * metric.error(original):
            raise WrongError(f"{group.name} of {group.described_layers}: {own:.3e}, and {other:.3e} without the metric")
    return ""


def metric_attention(subject: Subject) -> str:
    subject.operated("attention", targets="all", rank=RANK, metric="attention")
    return ""


def quantize_q8_0(subject: Subject) -> str:
    return _compare_quantised(subject, "Q8_0")


def quantize_q4_k_m(subject: Subject) -> str:
    return _compare_quantised(subject, "Q4_K_M")


def _compare_quantised(subject: Subject, kind: str) -> str:
    ours, theirs = (subject.folder / f"{whose}.{kind}.gguf" for whose in ("ours", "theirs"))
    quantize(subject.model, ours, kind, threads=1, force=True)
    subject.programs.quantize(subject.path, theirs, kind)
    if ours.read_bytes() != theirs.read_bytes():
        raise WrongError(f"{kind}: the bytes differ from llama-quantize's")
    return ""


def run(subject: Subject) -> str:
    sampling = SamplingOptions(temperature=0, max_tokens=8)
    with closing(start_conversation(subject.path, ContextOptions(n_ctx=64, threads=1), sampling)) as conversation:
        events = list(ask(conversation, "What is machine learning?"))
    return f"{len(events) - 1} pieces"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "inspect": inspect,
    "operate": operate_threshold,
    "--rank": operate_rank,
    "all": operate_all,
    "eval": eval_itself,
    "eval operated": eval_operated,
    "calibrate": calibrate_it,
    "inputs": metric_inputs,
    "attention": metric_attention,
    "Q8_0": quantize_q8_0,
    "Q4_K_M": quantize_q4_k_m,
    "run": run,
}
NEEDS = {"eval operated": ("--rank", "eval"), "inputs": ("calibrate",), "attention": ("calibrate",)}


def check_model(path: Path, text: Text, programs: Programs) -> dict[str, Outcome]:
    """The outcome of each check; one that needs another's result is not tried when that one is refused."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        subject = Subject(path, text, programs, Path(folder))
        outcomes: dict[str, Outcome] = {}
        for name, check in CHECKS.items():
            refused = [outcomes[needed] for needed in NEEDS.get(name, ()) if outcomes[needed].state == "refused"]
            outcomes[name] = refused[0] if refused else _outcome(check, subject)
    return outcomes


def _outcome(check: Callable[[Subject], str], subject: Subject) -> Outcome:
    try:
        return Outcome("works", check(subject))
    except (SurgeryError, NativeError) as error:
        message = str(error).replace(str(subject.path), subject.path.name)
        return Outcome("wrong" if "damaged" in message or "broken" in message else "refused", message)
    except (WrongError, ProgramError) as error:
        return Outcome("wrong", str(error))
    except Exception:
        return Outcome("wrong", traceback.format_exc(limit=-3))
