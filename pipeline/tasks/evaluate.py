"""Run tasks of lm-evaluation-harness on a GGUF file, and give back every item."""

import difflib
import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # both show bars of their own, for every task
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import lm_eval
import numpy as np
from datasets import config as datasets_config
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from native.errors import NativeError
from pipeline.errors import SurgeryError, UsageError, no_file
from pipeline.progress import Progress
from pipeline.tasks.choices import TaskChoices
from pipeline.tasks.harness import SurgeryLM
from pipeline.tasks.items import Measured

OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
MOST_NAMES = 3


class HarnessTasks:
    """Tasks of the harness, found and checked once for all models. Raises UsageError for a task that there is not."""

    def __init__(self, tasks: Sequence[str], choices: TaskChoices) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.tasks, self.choices = tasks, choices
        self._manager = _manager(tasks, choices.include_path)
        for name, task in self._load()["tasks"].items():
            _check(name, task, choices)

    def _load(self) -> dict[str, Any]:
        """The tasks as `lm_eval.simple_evaluate` prepares them, which also looks about for Git, pip and graphics cards."""
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        try:
            loaded: dict[str, Any] = self._manager.load([*self.tasks])
        except (SurgeryError, KeyboardInterrupt):
            raise
        except Exception as error:  # of the harness, of datasets, or of a task's own code
            raise SurgeryError(_why_not_loaded(self.tasks, error)) from None
        wanted = self.choices.num_fewshot
        for name, task in loaded["tasks"].items():
            own = task.get_config("num_fewshot")
            if own == 0 and wanted:
                raise UsageError(
                    f"`num_fewshot={wanted}`: {name} says that it has none, and the harness keeps to that; leave it out"
                )
            task.set_config(key="num_fewshot", value=(own or 0) if wanted is None else wanted)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        return loaded

    def evaluate(self, model: SurgeryLM, progress: Progress) -> list[Measured]:
        """Ask `model` every item. Raises SurgeryError with the harness' reason, NativeError as a Session does."""
        model.progress = progress
        loaded = self._load()  # anew: tasks keep what they were asked
        try:
            results = lm_eval.evaluate(
                lm=model,
                task_dict=loaded,
                limit=self.choices.limit,
                apply_chat_template=self.choices.chat_template,
                bootstrap_iters=0,
            )
        except (SurgeryError, NativeError):
            raise
        except Exception as error:
            raise SurgeryError(f"`tasks={', '.join(self.tasks)}`: {_told(error)}") from None
        return measured(results)


def measured(results: dict[str, Any]) -> list[Measured]:
    """Every metric of the harness' `results`, of each task and then of each group that was asked for."""
    found = []
    for task in results["samples"]:
        found += _metrics(task, [task], results, results["results"][task])
    for group, totals in results.get("groups", {}).items():
        found += _metrics(group, [t for t in _leaves(group, results) if t in results["samples"]], results, totals)
    return found


def _leaves(name: str, results: dict[str, Any]) -> list[str]:
    children = results.get("group_subtasks", {}).get(name) or []
    return [leaf for child in children for leaf in _leaves(child, results)] or [name]


def _metrics(name: str, tasks: Sequence[str], results: dict[str, Any], totals: dict[str, Any]) -> list[Measured]:
    found = []
    for key, total in totals.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or not isinstance(total, int | float):
            continue
        samples = [(t, s) for t in tasks for s in results["samples"][t] if s["filter"] == chosen and metric in s]
        values = [sample[metric] for _, sample in samples]
        itemwise = all(isinstance(value, bool | int | float) for value in values) and _is_mean(values, total)
        found.append(
            Measured(
                task=name,
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                values=tuple(map(float, values)) if itemwise else (),
                names=tuple(f"{task}/{sample['doc_id']}/{sample['doc_hash']}" for task, sample in samples),
                total=float(total),
                higher_is_better=results["higher_is_better"].get(name, {}).get(metric),
            )
        )
    return found


def _is_mean(values: Sequence[float], total: float) -> bool:
    """Whether the metric is the mean of its items, rather than some other function of all of them."""
    return bool(values) and abs(sum(values) / len(values) - total) <= 1e-9 * max(1.0, abs(total))


def _manager(tasks: Sequence[str], include_path: str | None) -> TaskManager:
    """Finds tasks in the folder alone if all are there: the harness' own thousands take seconds to find."""
    folder = None if include_path is None else Path(include_path)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"`include_path={folder}`: no such folder; name one with tasks as YAML files")
    for name in tasks:
        if name.endswith((".yaml", ".yml")) and not Path(name).is_file():
            raise UsageError(f"`tasks={name}`: {no_file(Path(name))}; name a YAML file of a task, or a task")
    if folder is not None or all(Path(name).is_file() for name in tasks):
        manager = TaskManager(include_path=folder, include_defaults=False)
        if all(name in manager.all_tasks or Path(name).is_file() for name in tasks):
            return manager
    manager = TaskManager(include_path=folder)
    for name in tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = difflib.get_close_matches(name, manager.all_tasks, MOST_NAMES, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else "lm_eval ls tasks lists all"
            raise UsageError(f"`tasks={name}`: lm_eval {lm_eval.__version__} has no such task; {hint}")
    return manager


def _check(name: str, task: Any, choices: TaskChoices) -> None:
    """Refuse what this class of models does not give, and items that cannot be answered."""
    kind = task.get_config("output_type")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"`tasks={name}`: shows images or sounds, and surgery gives models text; choose another task")
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"`tasks={name}`: runs code that the model writes, which surgery does not; lm_eval can")
    if kind not in OUTPUT_TYPES:
        raise UsageError(f"`tasks={name}`: has output type {kind}; surgery has {', '.join(OUTPUT_TYPES)}")
    if kind == "multiple_choice":
        for number, document in enumerate(task.eval_docs):
            if number == choices.limit:
                break
            if not task.doc_to_choice(document):
                raise SurgeryError(f"`tasks={name}`: item {number} has no choices; mend the data, or `limit={number}`")


def _why_not_loaded(tasks: Sequence[str], error: Exception) -> str:
    names = ", ".join(tasks)
    if isinstance(error, ConnectionError) or "offline" in type(error).__name__.lower():
        return (
            f"`tasks={names}`: the data is not on this machine and the network cannot be reached ({_told(error)});"
            f" the harness keeps it in {datasets_config.HF_DATASETS_CACHE}: run the same command on a machine with a"
            " network, copy that folder here and set HF_HUB_OFFLINE=1"
        )
    return f"`tasks={names}`: lm_eval cannot load it: {_told(error)}"


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
