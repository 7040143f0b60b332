"""The commands as real processes: exit codes, pipes, interruptions, full disks."""

import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.gguf_file.reader import open_gguf
from tests.conftest import SurgeryProcess


def start(*arguments: object) -> "subprocess.Popen[str]":
    """Start the command in a process group of its own, listening to signals, as a shell does for its foreground."""

    def listen() -> None:  # whatever started the tests, such as nohup, may have them ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    script = shutil.which("surgery", path=str(Path(sys.executable).parent))
    command = [str(script), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen
    )


def wait_for_partial_file(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Return once the output is being written. Fails when the process ends before that is seen."""
    while not any(path.stat().st_size > 2**20 for path in [*folder.glob(".*.partial"), *folder.glob(".*.partial/*")]):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


WRITING = {
    "operate": ("operate", "smollm2-135m", "-o", "o.gguf", "--threshold", "0.9"),
    "quantize": ("quantize", "smollm2-135m", "o.gguf", "Q2_K"),
    "operate and quantize": ("operate", "smollm2-135m", "-o", "o.gguf", "--quant", "Q8_0"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", WRITING)
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, command: str, number: signal.Signals) -> None:
    process = start(*WRITING[command])
    wait_for_partial_file(process, tmp_path)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    told = [line for line in stderr.splitlines() if "warning" not in line]
    assert told == (["surgery: interrupted"] if number == signal.SIGINT else [])
    assert not list(tmp_path.iterdir())


def test_nohup_is_respected(tiny: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "operate", str(tiny), "-o", "o.gguf", "--json"]

    def ignore_hangups() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=ignore_hangups)
    for _ in range(20):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGHUP)
        time.sleep(0.05)
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("command", ["operate", "operate and quantize"])
def test_after_kill_9_the_next_run_cleans_up(
    tmp_path: Path, embedded: Path, surgery: SurgeryProcess, command: str
) -> None:
    before = embedded.stat()
    process = start(*WRITING[command])
    wait_for_partial_file(process, tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert not (tmp_path / "o.gguf").exists()
    assert list(tmp_path.glob(".o.gguf.*.partial"))
    assert surgery(*WRITING[command]).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["o.gguf"]
    open_gguf(tmp_path / "o.gguf")
    after = embedded.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


@pytest.mark.parametrize("command", ["operate", "quantize"])
def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, surgery: SurgeryProcess, command: str) -> None:
    limit = 20 * 2**20  # a file may not grow larger, as on a full disk

    result = surgery(*WRITING[command], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert "o.gguf" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("--help",), ("quantize", "--help"), ("inspect", "smollm2-135m")])
def test_a_full_disk_behind_standard_output(arguments: tuple[str, ...]) -> None:
    for unbuffered in ({}, {"PYTHONUNBUFFERED": "1"}):
        with open("/dev/full", "w") as full:
            process = subprocess.run(
                [sys.executable, "-m", "pipeline", *arguments], stdout=full, stderr=subprocess.PIPE, text=True,
                env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | unbuffered,
            )  # fmt: skip
        assert process.returncode == 1
        assert process.stderr == "surgery: standard output: cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("on_path", "shown"), [(False, "{script} eval o.gguf"), (True, "surgery eval o.gguf")], ids=["elsewhere", "on PATH"]
)
def test_what_to_do_next_is_called_as_this_was(tiny: Path, surgery: SurgeryProcess, on_path: bool, shown: str) -> None:
    folder = Path(sys.executable).parent
    path = f"{folder}:{os.environ['PATH']}" if on_path else "/usr/bin:/bin"
    result = surgery("operate", tiny, "-o", "o.gguf", env=os.environ | {"PATH": path})
    assert f"what it lost:   {shown.format(script=folder / 'surgery')} --base" in result.stdout


def test_ctrl_c_ends_an_answer_and_then_the_chat() -> None:
    """On a terminal of its own: what is typed is echoed, and Ctrl-C becomes a signal."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.execv(sys.executable, [sys.executable, "-m", "pipeline", "run", "smollm2-135m", "--max-tokens", "2000"])
    shown = ""

    def read_until(end: str) -> str:
        nonlocal shown
        while end not in shown:
            shown += os.read(terminal, 4096).decode(errors="replace")
        before, _, shown = shown.partition(end)
        return before

    read_until("> ")
    os.write(terminal, b"Count from one to one thousand.\n")
    read_until("thousand.\r\n")
    while not shown:  # the answer has begun
        shown += os.read(terminal, 4096).decode(errors="replace")
    os.write(terminal, b"\x03")
    assert "; stopped]" in read_until("\n> ")
    time.sleep(0.3)  # a signal between the prompt and the system call that reads would wait for a line
    os.write(terminal, b"\x03")
    read_until("End the chat? [y/N] ")
    os.write(terminal, b"no\n")
    read_until("> ")
    os.write(terminal, b"/hlep\n")
    read_until("/hlep: no such command")
    read_until("> ")
    os.write(terminal, b"/reset\n")
    read_until("forgotten.")
    read_until("> ")
    os.write(terminal, b"\x1b[A\x1b[A\n")  # arrow up twice: the line before the last
    read_until("/hlep: no such command")
    read_until("> ")
    time.sleep(0.3)
    os.write(terminal, b"\x03")
    read_until("End the chat? [y/N] ")
    time.sleep(0.3)
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_folder_that_cannot_be_written(surgery: SurgeryProcess) -> None:
    result = surgery("operate", "smollm2-135m", "-o", "/proc/o.gguf")
    assert result.returncode in (1, 2)
    assert result.stderr.startswith("surgery: /proc/o.gguf: ")
    assert len(result.stderr.splitlines()) == 1


def test_piped_output_is_plain_and_whole(tiny: Path, surgery: SurgeryProcess) -> None:
    result = surgery("operate", tiny, "-o", "o.gguf")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    report = json.loads(surgery("operate", tiny, "-o", "o.gguf", "--force", "--json").stdout)
    assert report["output"] == "o.gguf"
    assert report["peak_rss_bytes"] < 600e6


def test_prompt_from_standard_input(tiny: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(tiny), "--max-tokens", "3", "--json"],
        input="abc\n", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["prompt"] == "abc"


def test_exit_codes(tmp_path: Path, surgery: SurgeryProcess) -> None:
    (tmp_path / "text").write_text("no model")
    assert surgery("--version").returncode == 0
    assert surgery("unknown").returncode == 2
    assert surgery("inspect", "nowhere").returncode == 2
    result = surgery("inspect", "text")
    assert result.returncode == 1
    assert result.stderr == "surgery: text: not a GGUF file, it has only 8 bytes\n"
