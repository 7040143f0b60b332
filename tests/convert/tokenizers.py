"""Tiny tokenizers of every kind, trained on the spot, and the text that they are tried on."""

import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.convert.pre_tokenizer import LLAMA3_PATTERN, QWEN2_PATTERN

TRAINING_TEXT = [
    "def surgery(attention):\n    return [head for head in attention if head.rank <= 0.3]\n",
    "The quick brown fox jumps over the lazy dog, doesn't it? I'll say: it's 1234567890 times 3.14!\n",
    "Der Überfluss an Größe, où l'été s'achève; El niño comió piñas. Привет, мир! Быстрая лиса.\n",
    "我想在工作的时候吃苹果。日本語のテキスト、カタカナも。한국어 문장입니다.\n",
    "for (int i = 0; i < n; ++i) { total += values[i] * weights[i]; }\n\n\t// comment   with  spaces\n",
] * 4
NASTY_TEXT = (
    "def f(x):\n\treturn x**2  # squares\n\n\n    if (a<=b){c[3]+=1;}\r\n"
    "I'll say it's 12345678 times 3.14, DON'T we'Ve? Größe, où l'été; Привет мир! 我想吃苹果。カタカナ 한국어 ខ្មែរ\n"
    "🦙🚀 😶\u200d🌫️ e\u0301 a   b     c\t\td \n \n  \n~~~~'''''''```\"\"\"......!!!!!! <|special|>mid<|special|> </s>end   "
)
SPECIAL = "<|special|>"
# Added tokens as Phi-3 has them: most swallow the spaces behind them, and the end of a text is no special token.
PHI_3: dict[int, dict[str, Any]] = {
    number: {"content": text, "special": text != "</s>", "lstrip": False, "rstrip": swallows, "normalized": False}
    for number, text, swallows in (
        (2, "</s>", True), (480, "<|endoftext|>", False), (481, "<|user|>", True), (482, "<|end|>", True)
    )
}  # fmt: skip


def split_as(pattern: str, **how: Any) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), **{"behavior": "isolated"} | how),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_level_tokenizer(kind: str) -> Tokenizer:
    """A trained tokenizer that splits text as `kind` (llama-bpe, phi-4, qwen2, smollm or gpt-2) does."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = {
        "llama-bpe": split_as(LLAMA3_PATTERN),
        "phi-4": split_as(LLAMA3_PATTERN, behavior="removed", invert=True),
        "qwen2": split_as(QWEN2_PATTERN),
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]),
        "gpt-2": plain,
    }[kind]
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    if kind == "llama-bpe":
        template = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def save_byte_level(folder: Path, kind: str) -> None:
    """tokenizer.json and tokenizer_config.json as the hub has them."""
    byte_level_tokenizer(kind).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GPT2Tokenizer" if kind == "phi-4" else "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "chat_template": "{{ messages }}",
        "model_max_length": 128,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_sentence_piece(folder: Path, added: dict[int, dict[str, Any]] | None = None) -> None:
    """tokenizer.model, trained by SentencePiece as Llama 2's was, with its tokenizer_config.json and tokens `added` there."""
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TRAINING_TEXT),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9995,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    special = {
        str(number): {"content": text, "special": True, "lstrip": False, "rstrip": False, "normalized": False}
        for number, text in enumerate(("<unk>", "<s>", "</s>"))
    }
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
        "added_tokens_decoder": special | {str(number): entry for number, entry in (added or {}).items()},
        "chat_template": "{{ messages }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def sentence_piece_as_json(folder: Path) -> Tokenizer:
    """The tokenizer.json that transformers 4 makes of a tokenizer.model: every merge of two pieces, in score order."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = {processor.IdToPiece(number): number for number in range(processor.vocab_size())}
    merges = []
    for piece, number in vocabulary.items():
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        if not (processor.IsByte(number) or processor.IsControl(number) or processor.IsUnknown(number)):
            merges += [(processor.GetScore(number), pair) for pair in known]
    merges.sort(key=lambda entry: -entry[0])
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [pair for _, pair in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer
