"""The commands through click's runner: what they print, and what bad input gets."""

import io
import json
import os
import re
import shlex
import time
import warnings
from pathlib import Path

import click
import gguf
import llama_cpp
import numpy as np
import pytest
import rich.console
from click.testing import CliRunner

from native.model import MOST_THREADS
from pipeline import __version__
from pipeline.cli import progress_report
from pipeline.cli.answering import BrokenLines
from pipeline.cli.main import COMMANDS, EXAMPLES, cli
from pipeline.cli.output import counted, print_table
from pipeline.cli.progress_report import Expected, Steps
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.visible import visible
from tests.commands import call, call_json
from tests.tiny_model import write_tiny_model


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output
    assert command in call("--help").output


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [80, 60])
def test_help_has_every_option_once_under_a_heading(command: str, columns: int) -> None:
    made = cli.get_command(click.Context(cli), command)
    assert made is not None
    context = click.Context(made, info_name=command, terminal_width=columns)
    text, _, example = made.get_help(context).partition("\n  Example:\n")
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    listed = text.partition(f"{headings[0]}:\n")[2]
    options = [param for param in made.get_params(context) if isinstance(param, click.Option)]
    for option in options:
        assert len(re.findall(rf"^  (?:-\w, )?{option.opts[-1]}\b(?!-)", listed, re.MULTILINE)) == 1
    assert len(headings) >= 3 if len(options) > 8 else headings == ["Options"]
    assert max(map(len, text.splitlines())) <= columns
    assert example


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_can_be_typed(command: str) -> None:
    name, *arguments = shlex.split(EXAMPLES[command])
    assert name == command
    made = cli.get_command(click.Context(cli), command)
    assert made is not None
    assert made.make_context(command, arguments).params
    assert f"Example:\n    surgery {EXAMPLES[command]}\n" in call(command, "--help").output


def test_the_version_says_what_computes() -> None:
    lines = call("--version").output.splitlines()
    assert lines[0].startswith(f"surgery {__version__}")
    assert llama_cpp.__version__ in lines[1]
    assert np.__version__ in lines[2]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"convert", "report"}))
def test_more_threads_than_llama_cpp_survives_are_refused(command: str) -> None:
    result = call(command, "--threads", MOST_THREADS + 1)
    assert result.exit_code == 2
    assert f"--threads {MOST_THREADS + 1}: expected a whole number from 0 to {MOST_THREADS}" in result.stderr


def test_operate_prints_a_table_and_what_to_do_next(tiny: Path) -> None:
    result = call("operate", tiny, "-o", "out.gguf", "--threshold", "0.5")
    assert result.exit_code == 0, result.output
    assert "k+v" in result.output
    assert "numbers stored if the factors were kept" in result.output
    assert f"surgery eval out.gguf --base {tiny}" in result.output
    assert list(open_gguf(Path("out.gguf")).tensors) == list(open_gguf(tiny).tensors)


def test_a_budget_that_not_even_rank_1_fits_is_told_so(tiny: Path) -> None:
    small = call("operate", tiny, "-o", "out.gguf", "--budget", "0.001", "--json")
    stored = json.loads(small.stdout)["stored_numbers"]
    assert small.exit_code == 0
    assert {group["rank"] for group in json.loads(small.stdout)["layers"]} == {1}
    assert f"asks for {stored['dense'] / 1000:,.0f} stored numbers" in small.stderr
    assert f"takes {stored['factors']:,} (" in small.stderr
    assert "--budget" not in call("operate", tiny, "-o", "enough.gguf", "--budget", "0.3").stderr


def test_operate_json(tiny: Path) -> None:
    report = call_json("operate", tiny, "-o", "out.gguf", "--rank", "5", "--layers", "1", "--mean", "none")
    assert {"output", "method", "targets", "threshold", "mean", "layers", "seconds", "peak_rss_bytes"} <= report.keys()
    assert (report["threshold"], report["rank"], report["mean"]) == (None, 5, "none")
    layers = report["layers"]
    assert isinstance(layers, list)
    assert {"layer", "group", "rows", "columns", "rank", "explained", "relative_error"} <= layers[0].keys()
    assert [(g["layer"], g["group"], g["rows"], g["columns"], g["rank"]) for g in layers] == [
        (1, "q", 64, 64, 5),
        (1, "kv", 64, 64, 5),
    ]


def test_operate_then_quantise(tiny: Path) -> None:
    report = call_json("operate", tiny, "-o", "out.gguf", "--threshold", "0.5", "--quant", "q8_0")
    assert report["quantization"]["type"] == "Q8_0"  # type: ignore[index]
    model = open_gguf(Path("out.gguf"))
    assert model.tensors["blk.0.ffn_up.weight"].type.name == "Q8_0"
    assert model.get("surgery.threshold") == 0.5
    assert [path.name for path in Path().iterdir()] == ["out.gguf"]


def test_quantize(tiny: Path, embedded: Path) -> None:
    result = call("quantize", tiny, "q.gguf", "q4_k_m")
    assert result.exit_code == 0, result.output
    assert "fell back to another type" in result.output
    assert "blk.0.attn_k.weight" in result.output
    again = call("quantize", embedded, "q2.gguf", "q8_0")
    assert again.exit_code == 0
    assert "quantising it again adds loss to loss" in again.stderr


def test_eval(tiny: Path, english: Path) -> None:
    result = call_json("eval", tiny, "--text", english, "--base", tiny, "--ctx", "64", "--chunks", "3")
    keys = "ppl ppl_se n_ctx chunks tokens_scored kld_mean kld_se kld_median kld_p99 same_top base_ppl seconds"
    assert {*keys.split(), "tokens_per_second", "kv_cache_bytes"} <= result.keys()
    assert (result["n_ctx"], result["chunks"], result["tokens_scored"]) == (64, 3, 93)
    assert (result["kld_mean"], result["same_top"]) == (0, 1)
    text = call("eval", tiny, "--text", english, "--ctx", "64", "--chunks", "3").output
    assert f"perplexity      {result['ppl']:.4f} (95 % interval over chunks {result['ppl_low']:.4f} to" in text
    assert "KL" not in text


def test_inspect(embedded: Path, tiny: Path) -> None:
    summary = call_json("inspect", "smollm2-135m")
    assert (summary["architecture"], summary["layers"], summary["heads"], summary["kv_heads"]) == ("llama", 30, 9, 3)
    assert summary["parameters"] == 134515008
    spectrum = call_json("inspect", tiny, "--spectrum")["spectrum"]
    assert isinstance(spectrum, list)
    assert [layer["layer"] for layer in spectrum] == [0, 1]
    assert spectrum[0]["ranks"].keys() == {"q", "k", "v", "kv"}
    text = call("inspect", tiny, "--spectrum").output
    assert "ranks that keep 0.99 0.95 0.9 0.5 0.3 of the variance" in text
    ranks = spectrum[1]["ranks"]["kv"]
    assert text.splitlines()[-1].split()[-5:] == [str(rank) for rank in ranks]


def test_run(tiny: Path) -> None:
    result = call("run", tiny, "--prompt", "abc", "--max-tokens", "5", "--temperature", "0", "--beside", tiny)
    assert result.exit_code == 0, result.output
    first, second = result.stdout.split(f"--- {tiny}\n")[1:]
    assert first.strip() == second.strip()
    assert result.stderr.count("[prompt 3 tokens") == 2
    piped = call("run", tiny, "--max-tokens", "5", "--temperature", "0", "--json", stdin="abc\n")
    assert json.loads(piped.stdout)["answers"][0]["generated_tokens"] <= 5


def test_lines_are_broken_between_words() -> None:
    text = "  The quick   brown fox\njumps over internationalisation and on.\n\n\u4f60\u597d\u4e16\u754c\u4f60\u597d\u4e16 end"
    for size in (1, 3, len(text)):
        lines = BrokenLines(12)
        shown = "".join(lines.add(text[i : i + size]) for i in range(0, len(text), size)) + lines.rest()
        assert shown.splitlines() == [
            "  The quick", "brown fox", "jumps over", "internationalisation", "and on.", "",
            "\u4f60\u597d\u4e16\u754c\u4f60\u597d", "\u4e16 end",
        ]  # fmt: skip


def test_a_prompt_may_stand_behind_the_model(tiny: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "3", "--json")
    prompts = [call_json("run", tiny, *prompt, *options)["prompt"] for prompt in (("a", "b"), ("--prompt", "a b"))]
    assert prompts == ["a b", "a b"]
    assert call("run", tiny, "a", "--prompt", "b").exit_code == 2


def test_a_system_message_and_no_template_at_all(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    metadata = {"tokenizer.chat_template": (template, gguf.GGUFValueType.STRING)}
    model = write_tiny_model(tmp_path / "m.gguf", metadata=metadata)
    options = ("--max-tokens", "1", "--json")

    def length(*arguments: str) -> int:
        return call_json("run", model, *arguments, *options)["answers"][0]["prompt_tokens"]  # type: ignore[index]

    assert length("abc") == len("<user>abc")
    assert length("abc", "--system", "Be short.") == len("<system>Be short.<user>abc")
    assert length("abc", "--plain") == len("abc")


def test_what_nobody_foresaw_is_one_line(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    def surprised(name: str) -> None:
        warnings.warn("nobody should see this", stacklevel=1)
        raise KeyError("no such\nthing")

    monkeypatch.setattr("pipeline.cli.quantize.open_model", surprised)
    arguments = ("quantize", str(tiny), "o.gguf", "Q8_0")
    result = call(*arguments)
    assert result.exit_code == 1
    line = f"surgery: quantize {tiny} o.gguf Q8_0: failed in a way that nobody foresaw (KeyError: 'no such\\nthing'); "
    assert result.stderr.startswith(line)
    assert len(result.stderr.splitlines()) == 1
    monkeypatch.setenv("SURGERY_DEBUG", "1")
    with pytest.warns(UserWarning, match="nobody should see this"):
        assert "in surprised" in call(*arguments).stderr


def test_every_kv_cache_type_on_offer_is_llama_cpps() -> None:
    from native.model import ggml_type
    from pipeline.cli.eval import command

    offered = next(option for option in command.params if option.name == "cache_type_k").type
    assert isinstance(offered, click.Choice)
    assert all(ggml_type(name) >= 0 for name in offered.choices)


BAD_INPUT = {
    "threshold 0": ("operate {tiny} -o o.gguf --threshold 0", 2, "--threshold 0: expected a share"),
    "threshold 1.5": ("operate {tiny} -o o.gguf --threshold 1.5", 2, "--threshold 1.5: expected a share"),
    "threshold nan": ("operate {tiny} -o o.gguf --threshold nan", 2, "--threshold nan: expected a share"),
    "threshold abc": (
        "operate {tiny} -o o.gguf --threshold abc",
        2,
        "--threshold abc: expected a share of the variance",
    ),
    "both": ("operate {tiny} -o o.gguf --threshold 0.5 --rank 3", 2, "give one of --threshold, --rank and --budget"),
    "rank too large": ("operate {tiny} -o o.gguf --rank 999", 2, "--rank 999: q of layer 0 has 64 components"),
    "method": ("operate {tiny} -o o.gguf --method svd", 2, "--method svd: expected one of shared-kv"),
    "targets": ("operate {tiny} -o o.gguf --targets xyz", 2, "--targets 'xyz'"),
    "layers": ("operate {tiny} -o o.gguf --layers 7", 2, "layer 7 has no q, k and v"),
    "no model": ("operate nowhere.gguf -o o.gguf", 2, "nowhere.gguf: no such file"),
    "folder": ("operate . -o o.gguf", 2, "is a folder"),
    "no output folder": ("operate {tiny} -o no/o.gguf", 2, "the folder no does not exist"),
    "output is input": ("operate {tiny} -o {tiny} --force", 2, "is the input itself"),
    "output exists": ("operate {tiny} -o {english}", 2, "exists already; add --force"),
    "quant type": ("operate {tiny} -o o.gguf --quant Q9", 2, "Q9: not a type"),
    "calibration unused": ("operate {tiny} -o o.gguf --calibration x", 2, "used by --metric inputs"),
    "a pipe as output": ("operate {tiny} -o {pipe} --force", 2, "is a device, pipe or socket"),
    "prompt not UTF-8": ("run {tiny} --prompt caf\udce9", 1, "is not UTF-8"),
    "type": ("quantize {tiny} o.gguf Q9", 2, "Q9: not a type"),
    "imatrix": ("quantize {tiny} o.gguf Q4_0 --imatrix nowhere", 2, "--imatrix nowhere: no such file"),
    "context beyond memory": (
        "run {tiny} --prompt x --ctx 2147483647 --cache-type-k f32 --cache-type-v f32",
        1,
        "GB for its KV cache alone",
    ),
    "needs imatrix": ("quantize {wide} o.gguf IQ1_S", 1, "importance matrix"),
    "not a model": ("eval {english}", 1, "not a GGUF file"),
    "short text": ("eval {tiny} --text {short}", 1, "short.txt: has 9 tokens; at least 1024 are needed"),
    "short text to compare": ("compare {tiny} -o s --text {short} --dry-run", 1, "short.txt: has 9 tokens; at least"),
    "short text to calibrate": ("calibrate {tiny} --text {short}", 1, "short.txt: has 9 tokens; at least 512 are"),
    "a folder as text": ("eval {tiny} --text {tiny.parent}", 2, ": is a folder; name a UTF-8 text file"),
    "no text": ("eval {tiny} --text nowhere", 2, "--text nowhere: no such file"),
    "other vocabulary": ("eval {tiny} --base smollm2-135m --text {english}", 1, "has another vocabulary"),
    "chunks": ("eval {tiny} --chunks 0", 2, "--chunks 0: expected a whole number from 1"),
    "no argument": ("operate", 2, "Missing argument 'MODEL'; see surgery operate --help"),
    "no output": ("operate {tiny}", 2, "Missing option '-o' / '--output'; see"),
    "no such option": ("operate {tiny} -o o.gguf --thresold 1", 2, "No such option '--thresold'"),
    "no such command": ("opreate {tiny}", 2, "opreate: no such command; did you mean operate?"),
    "no value": ("operate {tiny} -o o.gguf --rank", 2, "'--rank' requires an argument"),
    "temperature nan": ("run {tiny} --temperature nan", 2, "--temperature nan: expected a number of at least 0"),
    "temperature inf": ("run {tiny} --temperature inf", 2, "--temperature inf: expected a number of at least 0"),
    "seed that means any": ("run {tiny} --seed 4294967295", 2, "--seed 4294967295: expected a whole number from 0 to"),
    "top-p nan": ("run {tiny} --top-p nan", 2, "--top-p nan: expected a share above 0"),
    "list of numbers": ("compare {tiny} --ranks 4,x", 2, "--ranks x: expected a whole number from 1"),
    "ctx of run": (
        "run {tiny} --ctx 99999999999",
        2,
        "--ctx 99999999999: expected a whole number from 0 to 2147483647",
    ),
    "ctx of eval": ("eval {tiny} --ctx 99999999999", 2, "--ctx 99999999999: expected a whole number from"),
    "ctx of compare": ("compare {tiny} --ctx 99999999999", 2, "--ctx 99999999999: expected a whole number from 8"),
    "gpu layers": ("run {tiny} --gpu-layers -5", 2, "--gpu-layers -5: expected a whole number from -1"),
    "gpu layers of eval": ("eval {tiny} --gpu-layers -5", 2, "--gpu-layers -5: expected a whole number from -1"),
    "cache type": ("eval {tiny} --cache-type-k q9", 2, "--cache-type-k q9: expected one of f32"),
    "empty prompt": ("run {tiny} --prompt ''", 2, "--prompt: is empty"),
    "empty model": ("run '' hello", 2, "MODEL: is empty"),
    "empty base": ("eval {tiny} --base ''", 2, "--base: is empty"),
    "empty text": ("eval {tiny} --base {tiny} --text ''", 2, "--text: is empty"),
    "empty type": ("operate {tiny} -o o.gguf --quant=", 2, "--quant: is empty"),
    "no depths": ("eval {tiny} --depths ,", 2, "--depths: is empty"),
    "no tasks": ("tasks {tiny} --tasks ' ,'", 2, "--tasks: is empty"),
    "text as output": (
        "calibrate {tiny} --text short.txt -o short.txt --force",
        2,
        "short.txt: is given as --text, too",
    ),
    "statistics as output": (
        "latent {tiny} -o short.txt --calibration self,short.txt --force",
        2,
        "short.txt: is given as --calibration, too",
    ),
    "two outputs in one": (
        "calibrate {tiny} -o both.gguf --imatrix-output ./both.gguf",
        2,
        "both.gguf: is given as --imatrix-output, too",
    ),
    "a text twice": ("calibrate {tiny} --text short.txt,short.txt", 2, "names short.txt twice"),
    "nothing behind a comma": ("calibrate {tiny} --text self,", 2, "expected a name before and behind each comma"),
    "idle output": ("calibrate {tiny} --text self --show-text -o s.gguf", 2, "--output: is not written by --show-text"),
    "pictures in a file": ("inspect {tiny} --spectrum --plots short.txt", 2, "--plots short.txt: is a file"),
    "idle seed": ("operate {tiny} -o o.gguf --seed 3", 2, "--seed 3: --method 'shared-kv' draws nothing at random"),
    "idle seeds": ("compare {tiny} -o s --seeds 1,2", 2, "--seeds: none of the --methods uses it; add one of random"),
    "idle caches": (
        "compare {tiny} -o s --caches 0.3",
        2,
        "--caches: none of the --methods uses it; add one of latent",
    ),
    "idle metrics": ("compare {tiny} -o s --methods latent --metrics inputs", 2, "--metrics: none of the --methods"),
    "idle statistics": ("compare {tiny} -o s --calibration x", 2, "--calibration: is used by --metrics inputs and"),
    "idle matrix of a study": ("compare {tiny} -o s --imatrix x --quants Q8_0", 2, "--imatrix: changes nothing in any"),
    "idle matrix": ("quantize {tiny} o.gguf q8_0 --imatrix x", 2, "--imatrix: changes nothing in Q8_0; leave it out"),
    "a question that nobody answers": (
        "compare {tiny} -o s --prompt x --answer-tokens 0",
        2,
        "--prompt: nothing is answered with --answer-tokens 0",
    ),
    "force without a plan": ("compare {tiny} -o s --force", 2, "--force: is for --save-plan; --force-rerun measures"),
    "measuring in a plan": (
        "compare {tiny} --save-plan p.yaml --text short.txt",
        2,
        "--text: is not part of a plan; give it with --plan",
    ),
    "a rank of a grid": ("compare {tiny} -o s --ranks 999", 2, "--ranks 999: q of layer 0 has 64 components"),
    "methods of a grid that are one in this model": (
        "compare {tiny} -o s --methods cross-layer --group-layers 1",
        2,
        "--methods 'cross-layer': does to qkv of tiny.gguf by --group-layers 1 what shared-kv does",
    ),
    "a plan of no model": ("compare nope.gguf --save-plan p.yaml", 2, "nope.gguf: no such file"),
    "nothing to compare": ("compare -o s --save-plan p.yaml", 2, "name the MODEL to compare"),
    "status and more": ("compare {tiny} --status s", 2, "MODEL: changes nothing of --status"),
    "force without an output": ("calibrate {tiny} --force", 2, "--force: is for -o and --imatrix-output"),
    "idle probes": ("calibrate {tiny} --show-text --no-probes", 2, "--probes: changes nothing of --show-text"),
    "force without pictures": ("inspect {tiny} --force", 2, "--force: is for --plots; add it"),
    "no file of a task": ("tasks {tiny} --tasks ./my.yaml", 2, "--tasks ./my.yaml: no such file; name a YAML file"),
    "a cache of too few bytes": (
        "latent {tiny} -o l.gguf --cache-bytes 0.01 --calibration nope.txt",  # before a text is looked for
        2,
        "--cache-bytes 0.01: too little for 64 numbers per token and layer; expected at least 0.282",
    ),
    "idle seed of an answer": (
        "run {tiny} hello --temperature 0 --seed 3",
        2,
        "--seed: nothing is drawn at random with --temperature 0",
    ),
    "idle threads": ("inspect {tiny} --threads 1", 2, "--threads: is for --spectrum, --overlap and --damage"),
    "an item twice": ("tasks {tiny} --tasks passkey --places 0,0.5,0", 2, "--places 0: is asked twice; an item that"),
    "a task twice": ("tasks {tiny} --tasks passkey,passkey", 2, "--tasks 'passkey': is asked twice"),
    "standard output": (
        "operate {tiny} -o -",
        2,
        "-: is no file's name here, and nothing is written to standard output",
    ),
    "idle context of tasks": (
        "tasks {tiny} --tasks passkey --ctx 99",
        2,
        "--ctx: is for tasks of lm-evaluation-harness",
    ),
    "calibration not UTF-8": (
        "operate {tiny} -o o.gguf --metric inputs --calibration latin.txt",
        1,
        "--calibration latin.txt: not UTF-8 text (byte 3)",
    ),
    "idle seed of tasks": ("tasks {tiny} --hellaswag x --seed 3", 2, "--seed: is for --tasks passkey; add it"),
    "no GPU": ("run {tiny} hello --gpu-layers 3", 2, "--gpu-layers 3: llama.cpp was built without a GPU"),
    "no plan": ("compare {tiny} -o s --plan nope.yaml", 2, "--plan nope.yaml: no such file; expected a grid such as"),
    "a folder as plan": ("compare {tiny} -o s --plan {tiny.parent}", 2, ": is a folder; expected a grid such as"),
    "no address": (
        "compare {tiny} -o s --scheduler nonsense",
        2,
        "--scheduler 'nonsense': expected an address such as",
    ),
    "nobody at an address": (
        "compare {tiny} -o s --scheduler tcp://127.0.0.1:9",
        2,
        "no Dask scheduler answers there (Connection refused)",
    ),
    "idle pre-tokenizer": ("operate {tiny} -o o.gguf --pre llama-bpe", 2, "--pre: is for a Hugging Face checkpoint"),
}


def test_a_prompt_on_standard_input_that_is_not_utf_8(tiny: Path) -> None:
    result = CliRunner().invoke(cli, ["run", str(tiny)], input=b"caf\xe9")
    assert (result.exit_code, result.stderr) == (
        1,
        "surgery: standard input: not UTF-8 text (byte 3); convert it first\n",
    )


def test_a_cache_that_cannot_be_made(tiny: Path, english: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(english / "cache"))
    result = call("calibrate", tiny, "--text", english)
    assert result.exit_code == 1
    assert "cannot be made: Not a directory; set SURGERY_CACHE to a folder of yours" in result.stderr


def test_one_is_no_plural() -> None:
    assert [counted(number, "chunk") for number in (0, 1, 2000)] == ["0 chunks", "1 chunk", "2,000 chunks"]


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, wide: Path, english: Path, case: str
) -> None:
    import shlex

    template, code, message = BAD_INPUT[case]
    Path("short.txt").write_text("too short")
    Path("latin.txt").write_bytes(b"caf\xe9")
    pipe = tmp_path_factory.mktemp("pipe") / "pipe"
    os.mkfifo(pipe)
    result = call(*shlex.split(template.format(tiny=tiny, wide=wide, english=english, short="short.txt", pipe=pipe)))
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("surgery: ")
    assert len(result.stderr.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["latin.txt", "short.txt"]


HOSTILE = "[/b]\x1b[2J\x9b31m\u202ex\nsurgery: all is well"


def test_names_from_files_do_nothing_to_the_terminal(tiny: Path) -> None:
    """A tensor's name, a metadata key and a path with colours, cleared screens, line ends and rich's own markup."""
    model = open_gguf(tiny)
    names = {name: HOSTILE + name if "ffn" in name else name for name in model.tensors}
    declared = [TensorDeclaration(names[t.name], t.shape, t.type) for t in model.tensors.values()]
    metadata = [*model.metadata.values(), metadata_entry("surgery." + HOSTILE, HOSTILE)]
    path = Path(f"{HOSTILE.replace('/', '')}.gguf")
    with create_gguf(path, metadata, declared, alignment=32, force=False) as writer:
        for t in model.tensors.values():
            writer.put(names[t.name], model.read_raw(t.name))
    shown = call("inspect", path)
    assert shown.exit_code == 0, shown.output
    assert "[/b]\\x1b[2J\\x9b31m\\u202ex" in shown.stdout
    refused = call("eval", path, "--text", HOSTILE)
    for result in (shown, refused, call("inspect", HOSTILE), call(HOSTILE), call("operate", path, "--method", HOSTILE)):
        assert not set("\x1b\x9b\u202e") & set(result.output)
        assert "\nsurgery: all is well" not in result.output
    assert len(refused.stderr.splitlines()) == 1


def test_control_characters_are_made_visible_and_nothing_else() -> None:
    assert visible("a\tb\nc\r\x7f\x85\u2066\udce9\ud800") == r"a\tb\nc\r\x7f\x85\u2066\xe9\ud800"
    assert visible("a\tb\nc\r", keep="\n\t") == "a\tb\nc\\r"
    for text in ("Ω é 漢字 ﷽ \u200d\U0001f469\u200d\U0001f52c [bold] :smile:", ""):
        assert visible(text) == text


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("opreate", "x"), "did you mean operate?"),
        (("inspect", "smolm2-135m"), "did you mean smollm2-135m?"),
        (("inspect", "mymodle.gguf"), "did you mean mymodel.gguf?"),
        (("operate", "smollm2-135m", "-o", "o.gguf", "--method", "seperate"), "did you mean separate?"),
        (("operate", "smollm2-135m", "-o", "o.gguf", "--metric", "atention"), "did you mean attention?"),
        (("operate", "smollm2-135m", "-o", "o.gguf", "--treshold", "0.5"), "--threshold'?)"),
        (("operate", "smollm2-135m", "-o", "o.gguf", "--quant", "Q4KM"), "did you mean Q4_K_M?"),
        (("quantize", "smollm2-135m", "o.gguf", "q8"), "did you mean Q8_0?"),
        (("compare", "smollm2-135m", "-o", "s", "--methods", "sharedkv"), "did you mean shared-kv?"),
        (("compare", "smollm2-135m", "-o", "s", "--quants", "Q4-K-M"), "did you mean Q4_K_M?"),
    ],
)
def test_a_mistyped_name_is_told_the_nearest(arguments: tuple[str, ...], meant: str) -> None:
    Path("mymodel.gguf").touch()
    result = call(*arguments)
    assert result.exit_code == 2
    assert meant in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_targets_may_be_a_list(tiny: Path) -> None:
    assert call_json("operate", tiny, "-o", "o.gguf", "--targets", "q, k")["targets"] == "qk"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_time_that_is_left_is_never_hidden(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        progress_report,
        "Console",
        lambda **_: rich.console.Console(file=shown, width=width, force_terminal=True, height=20),
    )
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    steps = Steps([Expected(1), Expected(100)])
    with steps.next("calibrating on " + "a/very/long/path/" * 9, unit="chunks") as report:
        for done in range(4):
            report.update(done, 1000, "with a note that is long as well, and says a great deal of what is being done")
            time.sleep(0.02)
        assert report._bar
        report._bar.refresh()
    assert re.search(r"\d:\d\d:\d\d", shown.getvalue())
    assert ("(all: " in shown.getvalue()) == (width >= 60)


def test_a_failed_cell_leaves_the_table_readable(tiny: Path, english: Path) -> None:
    """Heads of 16 numbers do not fit blocks of 32: the reason, which is long, stands below the numbers of all cells."""
    options = ("--thresholds", 0.5, "--quants", "source", "--cache-types", "f16,q8_0", "--answer-tokens", 0)
    shown = call("compare", tiny, "-o", "study", *options, "--text", english, "--ctx", 64, "--chunks", 2)
    assert shown.exit_code == 1
    (heading,) = (line for line in shown.stdout.splitlines() if line.startswith("cell "))
    measured = next(line for line in shown.stdout.splitlines() if line.startswith("shared-kv 0.5") and "done" in line)
    assert max(len(heading), len(measured)) < 200
    assert "cache q8_0" not in measured
    assert re.search(r"^failed: .*shared-kv 0.5, cache q8_0[;:]", shown.stdout, re.MULTILINE)
    assert "study/work" not in shown.output
    assert "failed: " in call("compare", "--status", "study").stdout


def test_a_table_is_whole_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("a", "b"), [("x" * 300, "y" * 300)])
    assert ("x" * 300) + "  " + ("y" * 300) in capsys.readouterr().out
