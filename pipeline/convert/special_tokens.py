"""Which tokens begin, end and pad a text: from whichever of a checkpoint's files says so."""

from collections.abc import Iterator
from typing import Any

from gguf import GGUFValueType, Keys

from native.vocabulary import ENDS_BY_NAME
from pipeline.convert.config import shown
from pipeline.convert.pre_tokenizer import flatten
from pipeline.convert.tokenizer_files import TokenizerFiles
from pipeline.errors import SurgeryError
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry

KEYS = {
    "bos": Keys.Tokenizer.BOS_ID,
    "unk": Keys.Tokenizer.UNK_ID,
    "sep": Keys.Tokenizer.SEP_ID,
    "pad": Keys.Tokenizer.PAD_ID,
    "mask": Keys.Tokenizer.MASK_ID,
}
END_KEYS = (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)  # as many ends as GGUF has keys for


def special_tokens(files: TokenizerFiles, tokens: list[str], text_tokens: set[int]) -> Iterator[MetadataEntry]:
    """Their ids, and whether BOS and EOS are added to a text. `text_tokens`: the ids that spell text.

    Raises SurgeryError for ids and texts that are not in the vocabulary, where that matters, and for a model without
    EOS: llama.cpp would take some other token for it.
    """
    numbers = {text: number for number, text in enumerate(tokens)}
    ids = {role: number for role in KEYS if (number := _number(files, role, numbers, len(tokens))) is not None}
    ends = end_tokens(files, numbers, len(tokens), text_tokens)
    if not ends:
        raise SurgeryError(
            f"{files.folder}: no file names the token that ends a text, and llama.cpp would take another for it; add"
            " eos_token_id to config.json"
        )
    first, last = added_around(files)
    for place, text, number in (("start", first, ids.get("bos")), ("end", last, ends[0])):
        if isinstance(text, str) and numbers.get(text) != number:
            if place == "start" and number is None and text in numbers:
                ids["bos"] = numbers[text]
                continue
            raise SurgeryError(
                f"{files.path}: post_processor puts {shown(text)} at the {place} of a text, which is not its"
                f" {'bos_token' if place == 'start' else 'eos_token'}; llama.cpp would put that there"
            )
    if first and "bos" not in ids:
        raise SurgeryError(f"{files.folder}: add_bos_token is true, but no file names a bos_token")
    for role, number in ids.items():
        yield metadata_entry(KEYS[role], number, GGUFValueType.UINT32)
    for key, number in zip(END_KEYS, ends, strict=False):
        yield metadata_entry(key, number, GGUFValueType.UINT32)
    yield metadata_entry(Keys.Tokenizer.ADD_BOS, bool(first), GGUFValueType.BOOL)
    yield metadata_entry(Keys.Tokenizer.ADD_EOS, bool(last), GGUFValueType.BOOL)


def _number(files: TokenizerFiles, role: str, numbers: dict[str, int], size: int) -> int | None:
    """The id of a role's token: by its text, else by the number that config.json or generation_config.json gives."""
    if (text := files.role(role)) in numbers:
        return numbers[text]
    if text is not None and role == "bos":
        raise SurgeryError(f"{files.folder}: {role}_token is {shown(text)}, which is no token of the vocabulary")
    for values in (files.config, files.generation):
        number = values.get(f"{role}_token_id")
        if number is None or (role != "bos" and (type(number) is not int or not 0 <= number < size)):
            continue  # -1 for none, or a padding token without an embedding
        return _checked(files, f"{role}_token_id", number, size)
    return None


def _checked(files: TokenizerFiles, key: str, number: Any, size: int) -> int:
    if type(number) is not int or not 0 <= number < size:
        raise SurgeryError(
            f"{files.folder}: {key} is {shown(number)}; expected the number of one of the {size:,} tokens"
        )
    return int(number)


def end_tokens(files: TokenizerFiles, numbers: dict[str, int], size: int, text_tokens: set[int]) -> list[int]:
    """The tokens that end generation, eos_token first, without those that llama.cpp knows by their texts.

    Ids of config.json that spell text are left out where a file names eos_token: they are transformers' defaults,
    which it writes whatever the vocabulary. Raises SurgeryError for ids that there are not.
    """
    text = files.role("eos")
    if text is not None and text not in numbers:
        raise SurgeryError(f"{files.folder}: eos_token is {shown(text)}, which is no token of the vocabulary")
    listed = files.generation.get("eos_token_id", files.config.get("eos_token_id"))
    found = [numbers[text]] if text is not None else []
    for number in listed if isinstance(listed, list) else [] if listed is None else [listed]:
        _checked(files, "eos_token_id", number, size)
        if number not in found and (text is None or number not in text_tokens):
            found.append(number)
    known = {numbers[name] for name in ENDS_BY_NAME if name in numbers}
    found = found[:1] + [number for number in found[1:] if number not in known]
    if len(found) > len(END_KEYS):
        raise SurgeryError(f"{files.folder}: eos_token_id names {len(found)} tokens; GGUF has room for {len(END_KEYS)}")
    return found


def added_around(files: TokenizerFiles) -> tuple[str | bool, str | bool]:
    """What is put before and after a text: the token's text as tokenizer.json has it, or only whether.

    Where there is a tokenizer.json, its post_processor decides, as for transformers 5; add_bos_token and add_eos_token
    are of tokenizer.model alone, where BOS is added unless they say otherwise, as SentencePiece's models are used.
    Raises SurgeryError for a post_processor that does anything else.
    """
    steps = flatten(files.tokenizer.get("post_processor"), "processors")
    templates = [step for step in steps if step.get("type") == "TemplateProcessing"]
    if odd := [step.get("type") for step in steps if step.get("type") not in ("TemplateProcessing", "ByteLevel")]:
        raise SurgeryError(f"{files.path}: post_processor is of type {shown(odd[0])}; only templates are supported")
    if templates:
        match [[*map(_part, template.get("single", []))] for template in templates]:
            case [[None]]:
                return False, False
            case [[str(first), None]]:
                return first, False
            case [[None, str(last)]]:
                return False, last
            case [[str(first), None, str(last)]]:
                return first, last
        raise SurgeryError(
            f"{files.path}: post_processor adds more than one token before and after a text; llama.cpp adds BOS and EOS"
        )
    adds_bos, adds_eos = _flag(files, "add_bos_token", not files.tokenizer), _flag(files, "add_eos_token", False)
    if files.tokenizer and (adds_bos or adds_eos):
        raise SurgeryError(
            f"{files.folder / 'tokenizer_config.json'}: {'add_bos_token' if adds_bos else 'add_eos_token'} is true, but by"
            " tokenizer.json's post_processor, which transformers goes by, nothing is added"
        )
    return adds_bos, adds_eos


def _part(part: dict[str, Any]) -> str | None:
    """The token of a part of a template; None for the text itself."""
    match part:
        case {"SpecialToken": {"id": str(text)}}:
            return text
        case {"Sequence": {"id": "A"}}:
            return None
    raise ValueError(f"a template with {shown(part)}")


def _flag(files: TokenizerFiles, key: str, default: bool) -> bool:
    value = files.settings.get(key)
    if value is not None and not isinstance(value, bool):
        raise SurgeryError(f"{files.folder / 'tokenizer_config.json'}: {key} is {shown(value)}; expected true or false")
    return default if value is None else value
