"""What a checkpoint is whose tensors have other names than transformers gives them, and what to do about it."""

from collections.abc import Iterable

from pipeline.convert.config import Config, shown
from pipeline.errors import SurgeryError

MERGE = "merge it into its base first (peft: model.merge_and_unload().save_pretrained(FOLDER))"
SAVE = "save the inner model again, by its own save_pretrained(FOLDER)"
ADAPTERS = ("lora_A", "lora_B", "lora_embedding", "modules_to_save", "base_layer")
# What names begin with -> what that means, and what to do
WRAPPERS = {
    "base_model.": ("a PEFT wrapper's", MERGE),
    "module.": ("torch's DataParallel's or DeepSpeed's", SAVE),
    "_orig_mod.": ("torch.compile's", SAVE),
    "_forward_module.": ("a training loop's", SAVE),
    "model.language_model.": ("a vision model's text part's", "save its text part alone, as its text-only class"),
    "language_model.": ("a vision model's text part's", "save its text part alone, as its text-only class"),
    "transformer.": ("another architecture's", "check architectures in config.json"),
    "gpt_neox.": ("another architecture's", "check architectures in config.json"),
}


def explain_missing(config: Config, stored: Iterable[str], layers: str) -> None:
    """Raise SurgeryError when the names of `stored` tell why an expected tensor is missing; `layers` is the right prefix."""
    names = list(stored)
    folder = config.path.parent
    explain_adapter(config, names)
    if any(name.startswith(f"{layers}.") for name in names):
        return
    for prefix, (whose, advice) in WRAPPERS.items():
        if name := next((name for name in names if name.startswith(prefix)), None):
            raise SurgeryError(f"{folder}: the tensors' names begin with {whose} {prefix} ({shown(name)}); {advice}")
    if name := next((name for name in names if ".layers." in name or name.startswith("layers.")), None):
        raise SurgeryError(
            f"{folder}: the tensors are not called as transformers calls them: {shown(name)}; expected {layers}.0 and so"
            f" on: {SAVE}"
        )
    if not names:
        raise SurgeryError(f"{folder}: the weights hold no tensors but those of the embeddings; is a shard missing?")


def explain_adapter(config: Config, stored: Iterable[str]) -> None:
    """Raise SurgeryError when one of the names of `stored` is an adapter's."""
    if name := next((name for name in stored if any(part in name for part in ADAPTERS)), None):
        raise SurgeryError(f"{config.path.parent}: holds tensors of an adapter ({shown(name)}); {MERGE}")
