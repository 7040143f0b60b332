"""The model class for lm-evaluation-harness: `lm_eval --model surgery --model_args path=model.gguf --tasks ...`.

What a request is made of (BOS, truncation from the left, rolling windows, stops) follows the harness' own class for
transformers, `lm_eval.models.huggingface`, version 0.4.13.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from native.completion import Prompt
from native.likelihood import Continuation
from native.model import ContextOptions
from pipeline.errors import UsageError
from pipeline.inputs.models import resolve_model
from pipeline.progress import Progress
from pipeline.tasks.session import Session

MOST_GENERATED = 256  # tokens, where a task does not say
SEED = 1234
GENERATION = {"until", "do_sample", "temperature", "top_k", "top_p", "max_gen_toks"}
LogLikelihood = tuple[float, bool]
Encoded = tuple[Any, list[int], list[int]]


class SurgeryLM(TemplateLM):  # type: ignore[misc]
    """A GGUF file, run with llama.cpp. All arguments may stand in `--model_args`.

    path: a GGUF file or an embedded model's name; max_length: tokens a context may have, the model's own by default;
    seed: for tasks that sample. The harness' `batch_size` has no effect, for requests are batched by their tokens; nor
    has its `device`, which it makes up: `gpu_layers` says what a GPU does.
    """

    def __init__(
        self,
        path: str = "",
        *,
        max_length: int | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        threads: int = 0,
        gpu_layers: int = 0,
        flash_attention: bool = True,
        seed: int = SEED,
        session: Session | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UsageError(f"model_args {', '.join(unknown)}: not known to surgery; {_known_arguments()}")
        if not path:
            raise UsageError(f"model_args: path=MODEL.gguf is missing; {_known_arguments()}")
        self.path, self.seed = resolve_model(str(path)), int(seed)
        self.options = ContextOptions(
            type_k=cache_type_k,
            type_v=cache_type_v,
            threads=int(threads),
            gpu_layers=int(gpu_layers),
            flash_attention=bool(flash_attention),
        )
        self.session = session or Session(self.path, self.options)
        self.max_length = context_length(str(path), max_length, self.session.facts.n_ctx_train)
        self.truncated = 0  # requests whose beginning was left out
        self.progress: Progress | None = None  # otherwise the harness' kind of bar
        self._encode = lru_cache(4096)(self._tokenize)

    @property
    def eot_token_id(self) -> int:
        return self.session.facts.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self.session.facts.bos if self.session.facts.bos >= 0 else self.session.facts.eos

    @property
    def tokenizer_name(self) -> str:
        """For the harness' cache of requests: a chat template belongs to a file."""
        template = (self.session.facts.chat_template or "").encode()
        return f"{self.path.name}-{zlib.crc32(template):08x}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if isinstance(chat_template, str):
            raise UsageError(f"--apply_chat_template {chat_template}: a GGUF file has one template; leave the name out")
        return self.session.facts.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the file's template has it. Raises UsageError for a file without one."""
        if self.session.facts.chat_template is None:
            raise UsageError(f"{self.path}: has no chat template (tokenizer.chat_template); leave it out")
        return self.session.render(chat_history, answering=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, control tokens by their text; BOS where the file says so and the text does not begin with it."""
        ids = list(self._encode(string))
        facts = self.session.facts
        adds = facts.adds_bos if add_special_tokens is None else add_special_tokens and facts.bos >= 0
        return [facts.bos, *ids] if adds and ids[:1] != [facts.bos] else ids

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.session.tokenize([text], special=True)[0].tolist())

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """log p of each continuation, and whether it is what the model would say, see the harness' `LM`."""
        for context, continuation in (request.args for request in requests):
            if continuation == "":
                raise UsageError(f"an item asks for the likelihood of nothing, after {context[-40:]!r}")
        found: list[LogLikelihood] = super().loglikelihood(
            requests, disable_tqdm=disable_tqdm or self.progress is not None
        )
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[LogLikelihood]:
        found: dict[int, LogLikelihood] = {}
        continuations = [self._continuation(context, target) for _, context, target in requests]
        with self._progress(len(requests), "log-likelihoods", disable_tqdm) as advance:
            for part in self.session.answers(continuations):
                for number, answer in part.items():
                    found[number] = answer.total, answer.greedy
                    if requests[number][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
                advance(len(part))
        return [found[number] for number in range(len(requests))]

    def _continuation(self, context: list[int], target: list[int]) -> Continuation:
        """As much of the end of `context` as the model has room for: the last token is not read."""
        if not 0 < len(target) <= self.max_length:
            raise UsageError(
                f"{self.path}: a continuation has {len(target)} tokens; expected 1 to {self.max_length}, the context"
            )
        self.truncated += len(context) + len(target) > self.max_length + 1
        kept = (context + target)[-(self.max_length + 1) : -len(target)]
        return Continuation(np.array(kept, np.int32), np.array(target, np.int32))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each text as a whole, in windows of the longest context, see the harness' `LM`."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for number, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (total, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[number] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, until a stop, see the harness' `LM`."""
        repeats: Counter[str] = Counter()
        prompts = []
        for request in requests:
            context, arguments = request.args
            prompts.append(self._prompt(context, arguments, repeats[context]))
            repeats[context] += 1
        texts: dict[int, str] = {}
        with self._progress(len(requests), "answers", disable_tqdm) as advance:
            for group in self.session.complete(prompts):
                texts |= group
                for number, text in group.items():
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
                advance(len(group))
        return [texts[number] for number in range(len(requests))]

    def _prompt(self, context: str, arguments: dict[str, Any], repeat: int) -> Prompt:
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(arguments, MOST_GENERATED))
        if unknown := wanted.keys() - GENERATION:
            raise UsageError(
                f"generation_kwargs {', '.join(sorted(unknown))}: surgery has {', '.join(sorted(GENERATION))}"
            )
        until = [wanted["until"]] if isinstance(wanted["until"], str) else wanted["until"] or []
        room = self.max_length - wanted["max_gen_toks"]
        if room < 1:
            raise UsageError(
                f"{self.path}: a task generates {wanted['max_gen_toks']} tokens, the context has {self.max_length}"
            )
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        self.truncated += len(tokens) > room
        return Prompt(
            np.array(tokens[-room:], np.int32),
            wanted["max_gen_toks"],
            tuple(filter(None, until)),
            temperature=wanted["temperature"] if wanted["do_sample"] else 0.0,
            top_k=int(wanted.get("top_k") or 0),
            top_p=float(wanted.get("top_p") or 1.0),
            seed=(self.seed, zlib.crc32(context.encode()), repeat),
        )

    @contextmanager
    def _progress(self, total: int, noun: str, quiet: bool) -> Iterator[Callable[[int], object]]:
        """Gives what to call with how many requests have been finished."""
        with tqdm(total=total, desc=noun, disable=True if quiet or self.progress else None) as bar:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                if self.progress:
                    self.progress(done, total, noun)
                bar.update(count)

            yield advance

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes beside its results."""
        return {"path": str(self.path), "max_length": self.max_length, **vars(self.options), "seed": self.seed}


def context_length(model: str, asked: int | None, trained: int) -> int:
    """How many tokens a context may have. Raises UsageError for more than the model was made for."""
    length = trained if asked is None else int(asked)
    if not 2 <= length <= trained:
        raise UsageError(f"{model}: a context of {length} tokens was asked for; the model has 2 to {trained}")
    return length


def _known_arguments() -> str:
    return "known are path, max_length, cache_type_k, cache_type_v, threads, gpu_layers, flash_attention, seed"
