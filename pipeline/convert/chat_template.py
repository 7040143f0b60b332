"""Chat templates: a file of their own before what tokenizer_config.json says, as transformers takes them."""

import re
from collections.abc import Iterator
from typing import Any

from gguf import GGUFValueType, Keys

from pipeline.convert.config import read_json_if_there, shown
from pipeline.convert.tokenizer_files import TokenizerFiles
from pipeline.errors import SurgeryError
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry


def chat_templates(files: TokenizerFiles) -> Iterator[MetadataEntry]:
    """The chat template, or several by name, of which `default` comes first.

    Raises SurgeryError for templates that are no text, and names that GGUF's keys cannot hold.
    """
    found = _templates(files)
    names = [name for name in found if name != "default"]
    for name, template in found.items():
        if not isinstance(template, str) or not re.fullmatch(r"[\w-]{1,64}", name):
            raise SurgeryError(f"{files.folder}: the chat template {shown(name)} is {shown(template)}; expected a text")
        key = Keys.Tokenizer.CHAT_TEMPLATE
        if name != "default":
            key = Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name)
        yield metadata_entry(key, template, GGUFValueType.STRING)
    if names:
        yield metadata_entry(Keys.Tokenizer.CHAT_TEMPLATES, names, GGUFValueType.STRING)


def _templates(files: TokenizerFiles) -> dict[Any, Any]:
    paths = {path.stem: path for path in sorted((files.folder / "additional_chat_templates").glob("*.jinja"))}
    if (files.folder / "chat_template.jinja").is_file():
        paths = {"default": files.folder / "chat_template.jinja", **paths}
    try:
        if paths:
            return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    except (OSError, ValueError) as error:
        raise SurgeryError(f"{files.folder}: a chat template cannot be read: {error}") from None
    value = files.settings.get("chat_template")
    if value is None:
        value = read_json_if_there(files.folder / "chat_template.json").get("chat_template")
    match value:
        case None | "":
            return {}
        case str():
            return {"default": value}
        case dict():
            return value
        case list() if all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in value):
            named = [(str(entry["name"]), entry["template"]) for entry in value]
            return dict(sorted(named, key=lambda entry: entry[0] != "default"))
    raise SurgeryError(f"{files.folder}: chat_template is {shown(value)}; expected a text, or texts by name")
