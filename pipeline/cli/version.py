"""`surgery --version`: what a report of a fault needs to say."""

import json
import subprocess
from importlib.metadata import PackageNotFoundError, distribution

import click

from pipeline.revision import ROOT, made_with


def show_version(ctx: click.Context) -> None:
    """Print this program's version and commit, and what it computes with; then end."""
    facts = made_with(0)
    click.echo(f"surgery {facts['surgery']}{_commit()}")  # noqa: TID251  # nothing here came from a file
    click.echo(f"llama-cpp-python {facts['llama_cpp']}, built for {facts['instruction_set']}")  # noqa: TID251
    click.echo(f"NumPy {facts['numpy']} with {facts['blas']}; {facts['machine']}")  # noqa: TID251
    ctx.exit()


def _commit() -> str:
    """`, commit 1a2b3c4` of the checkout that this is, or that pip installed it from; nothing for a released package."""
    commit = ""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""
    else:
        try:
            origin = json.loads(distribution("surgery").read_text("direct_url.json") or "{}")
        except PackageNotFoundError:
            return ""
        commit = origin.get("vcs_info", {}).get("commit_id", "")[:7]
    return f", commit {commit}" if commit else ""
