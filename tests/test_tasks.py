"""`surgery tasks`: llama.cpp's files against a plain decode, the harness offline, passkeys, and what is asked wrongly."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy.special import log_softmax

from native.model import ContextOptions, load_model, open_context
from pipeline.cli.main import cli
from pipeline.errors import SurgeryError
from pipeline.tasks.llama_files import read_hellaswag, read_multiple_choice, read_winogrande
from tests.databases import rows_of
from tests.llama_task_files import write_hellaswag, write_multiple_choice, write_winogrande
from tests.tiny_model import TinyModel, with_number

EXACT = ("--threads", "1", "--json")


@pytest.fixture(autouse=True)
def offline(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["tasks", *map(str, arguments)])


def rows(*arguments: object) -> list[dict[str, Any]]:
    result = run(*arguments, *EXACT)
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)["results"]
    return found


def write_task(folder: Path, items: list[dict[str, Any]], kind: str = "multiple_choice") -> Path:
    """A task of the harness over a local file."""
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "local.yaml").write_text(
        f"task: local_letters\ndataset_path: json\ndataset_kwargs:\n  data_files: {data}\ntest_split: train\n"
        f'output_type: {kind}\ndoc_to_text: "{{{{question}}}}"\ndoc_to_choice: choices\ndoc_to_target: answer\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    return folder


ITEMS: list[dict[str, Any]] = [
    {"question": f"{n} and {n + 1} are", "choices": [str(2 * n + 1), f"{n}{n}", "many of them"], "answer": n % 3}
    for n in range(12)
]


def total(model: Path, context: str, continuation: str) -> float:
    """log p of `continuation` after `context`, by one plain decode."""
    with load_model(str(model)) as loaded:
        first = loaded.tokenize(context, special=True)
        tokens = loaded.tokenize(context + continuation, special=True)
        n = len(tokens)
        with open_context(loaded, ContextOptions(n_ctx=512, threads=1)) as opened:
            opened.decode(tokens, np.arange(n), np.zeros(n, int), np.ones(n, bool))
            log_p = log_softmax(opened.logits(n).astype(np.float64), axis=1)
        return float(log_p[np.arange(len(first) - 1, n - 1), tokens[len(first) :]].sum())


def test_the_harness_counts_what_single_decodes_say(tiny: Path, make_tiny: Callable[[TinyModel], Path]) -> None:
    pytest.importorskip("lm_eval")
    other = make_tiny(TinyModel(seed=5))
    folder = write_task(Path.cwd(), ITEMS)
    arguments = (tiny, "--base", other, "--tasks", "local_letters", "--include-path", folder)
    found = {row["metric"]: row for row in rows(*arguments)}
    right = {}
    for model in (tiny, other):
        likeliest = [
            int(np.argmax([total(model, item["question"], f" {choice}") for choice in item["choices"]]))
            for item in ITEMS
        ]
        right[model] = np.array([choice == item["answer"] for choice, item in zip(likeliest, ITEMS, strict=True)])
    acc = found["acc"]
    assert acc["items"] == 12
    assert acc["value"]["mean"] == pytest.approx(right[tiny].mean())
    assert acc["base"]["mean"] == pytest.approx(right[other].mean())
    assert acc["difference"]["gained"] == (right[tiny] & ~right[other]).sum()
    assert acc["difference"]["lost"] == (right[other] & ~right[tiny]).sum()
    table = run(*arguments, "--threads", 1, "--limit", 5)
    assert table.exit_code == 0, table.stderr
    assert [line.split()[:3] for line in table.stdout.splitlines()[1:]] == [
        ["local_letters", "acc", "5"],
        ["local_letters", "acc_norm", "5"],
    ]


def test_an_item_without_choices_is_named(tiny: Path) -> None:
    pytest.importorskip("lm_eval")
    folder = write_task(Path.cwd(), [ITEMS[0], ITEMS[1] | {"choices": []}])
    result = run(tiny, "--tasks", "local_letters", "--include-path", folder)
    assert (result.exit_code, "item 1 has no choices" in result.stderr) == (1, True)


def test_data_that_is_not_here_is_one_line_that_says_where_it_belongs(tiny: Path) -> None:
    pytest.importorskip("lm_eval")
    (Path.cwd() / "far.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing-here\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "a"\ndoc_to_choice: ["b"]\ndoc_to_target: 0\n'
    )
    result = run(tiny, "--tasks", "far", "--include-path", Path.cwd())
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "network" in line
    assert "datasets" in line
    assert "HF_HUB_OFFLINE=1" in line


@pytest.mark.parametrize("kind", ["hellaswag", "multiple-choice"])
def test_files_of_the_perplexity_tool_are_scored_by_its_rules(tiny: Path, kind: str) -> None:
    write = write_hellaswag if kind == "hellaswag" else write_multiple_choice
    read = read_hellaswag if kind == "hellaswag" else read_multiple_choice
    path = write(Path.cwd() / "file", 8)
    right = []
    for item in read(path, None).items:
        alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*item.texts, strict=False))
        shared = "".join(letters[0] for letters in alike)  # a token is a byte here
        means = [total(tiny, shared, text[len(shared) :]) / len(text[len(shared) :].encode()) for text in item.texts]
        right.append(item.right[int(np.argmax(means))])
    (row,) = rows(tiny, f"--{kind}", path)
    assert (row["items"], row["value"]["mean"]) == (8, pytest.approx(np.mean(right)))


def test_the_tools_last_winogrande_line_is_left_out_as_there(tiny: Path) -> None:
    path = write_winogrande(Path.cwd() / "file", 9)
    assert len(read_winogrande(path, None).items) == 9
    (row,) = rows(tiny, "--winogrande", path)
    assert row["items"] == 9


def test_items_are_drawn_as_the_tool_draws_them() -> None:
    """The orders are those of llama-perplexity, --hellaswag-tasks 5 and --winogrande-tasks 5, built with libstdc++."""
    hellaswag = read_hellaswag(write_hellaswag(Path.cwd() / "h", 30), 5)
    winogrande = read_winogrande(write_winogrande(Path.cwd() / "w", 30), 5)
    assert [item.number for item in hellaswag.items] == HELLASWAG_ORDER
    assert [item.number for item in winogrande.items] == WINOGRANDE_ORDER


HELLASWAG_ORDER = [12, 29, 21, 27, 0]
WINOGRANDE_ORDER = [12, 28, 20, 25, 0]


def test_damaged_files_are_named(tiny: Path) -> None:
    cut = Path("cut.bin")
    cut.write_bytes(write_multiple_choice(Path.cwd() / "m", 4).read_bytes()[:-9])
    with pytest.raises(SurgeryError, match=r"`multiple_choice=cut.bin`: not in llama.cpp's binary format, or cut off"):
        read_multiple_choice(cut, None)
    five = Path("five.txt")
    five.write_text("a\n0\nb\nc\nd\n")
    assert "has 5 lines; expected six an item" in run(tiny, "--hellaswag", five).stderr
    same = Path("same.txt")
    same.write_text("a\n0\nb\nb\nb\nb\n")
    assert "begin or end alike" in run(tiny, "--hellaswag", same).stderr
    blank = Path("w.csv")
    blank.write_text("0,no place,a,b,1\nx\n")
    assert "line 1: the sentence has no _" in run(tiny, "--winogrande", blank).stderr


def test_a_passkey_is_found_where_the_model_says_it(embedded: Path) -> None:
    arguments = (embedded, "--tasks", "passkey", "--depths", 256, "--places", "0,1", "--needles", 1, "--repeats", 1)
    result = run(*arguments, "--base", embedded, *EXACT)
    found = json.loads(result.stdout)
    assert found["results"][0]["value"]["mean"] == 1.0
    assert found["results"][0]["difference"]["p"] == 1.0
    assert [cell["place"] for cell in found["passkeys"][0]] == [0.0, 1.0]
    text = run(*arguments, "--threads", 1).stdout
    assert "█ 100%  █ 100%" in text


def test_what_was_answered_is_not_asked_again(tiny: Path) -> None:
    path = write_hellaswag(Path.cwd() / "file", 6)
    rows(tiny, "--hellaswag", path)
    with sqlite3.connect(Path(os.environ["SURGERY_CACHE"]) / "answers.sqlite") as db:
        known = db.execute("SELECT count(*) FROM likelihoods").fetchone()[0]
        assert known == 24
        db.execute("UPDATE likelihoods SET total = 0")  # the first of equal endings is taken
    db.close()
    (row,) = rows(tiny, "--hellaswag", path)
    assert row["value"]["mean"] == pytest.approx(np.mean([item.right[0] for item in read_hellaswag(path, None).items]))


def test_a_killed_run_goes_on_where_it_was(tiny: Path) -> None:
    command = [sys.executable, "-c", "from pipeline.cli.main import main; main()", "tasks", str(tiny)]
    command += ["--hellaswag", str(write_hellaswag(Path.cwd() / "file", 1000)), "--limit", "1000", "--threads", "1"]
    file = Path(os.environ["SURGERY_CACHE"]) / "answers.sqlite"

    def answered() -> int:
        return rows_of(file, "likelihoods")

    before = 0  # and not counted anew: what was killed may have to be recovered before it can be read
    for number in (signal.SIGKILL, signal.SIGINT):
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
        )  # fmt: skip
        while answered() <= before and time.monotonic() - started < 120:
            time.sleep(0.05)
        process.send_signal(number)
        complaint = process.communicate(timeout=60)[1]
        after = answered()
        assert after > before
        before = after
        if number == signal.SIGINT:
            assert (process.returncode, complaint.splitlines()[-1]) == (130, "surgery: interrupted")


def test_what_cannot_be_asked_is_told_in_one_line(tiny: Path, make_tiny: Callable[[TinyModel], Path]) -> None:
    path = write_hellaswag(Path.cwd() / "file", 2)
    broken = with_number(tiny, Path.cwd() / "broken.gguf", "output_norm.weight", np.nan)
    for arguments, code, message in (
        ((tiny,), 2, "nothing to do; add --tasks"),
        ((tiny, "--hellaswag", "missing"), 2, "--hellaswag missing: no such file"),
        ((tiny, "--tasks", "passkey", "--depths", "4096"), 2, "--depths 4096: expected 256 to 512 tokens"),
        ((broken, "--hellaswag", path), 1, "numerically broken"),
    ):
        result = run(*arguments)
        assert result.exit_code == code, result.stderr
        assert message in result.stderr.strip().splitlines()[-1]


def test_a_base_with_another_vocabulary_is_refused(tiny: Path, embedded: Path) -> None:
    result = run(tiny, "--base", embedded, "--hellaswag", write_hellaswag(Path.cwd() / "file", 2))
    assert result.exit_code == 1
    assert "has another vocabulary" in result.stderr
