"""The text workload's side of a job file: from prompts to tokens, and from units to each prompt's text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from p2p_node.executor import ModelPlace
from p2p_node.taskspec import LmTask
from protocols.blobs import Blob
from protocols.limits import LM_CHUNK_UNITS
from workloads.blobs import blob_from_words
from workloads.errors import InputRefused, ModelRefused, WorkloadRefused
from workloads.llama.config import load_config
from workloads.lm.input import END_UNIT, NO_LOGPROBS, LmInput, decode_input
from workloads.lm.kind import LM
from workloads.lm.layout import Output, Outputs, outputs_of, words_of
from workloads.lm.logprobs import Logprobs, read_logprobs
from workloads.lm.pieces import TokenBytes
from workloads.lm.tokenizer import TextStream, TextTokenizer

__all__ = ["TextOutput", "text_input", "text_output"]


def text_input(task: LmTask, model_dir: Path, tokenizer: TextTokenizer, *, is_whole: bool) -> LmInput:
    """What a task asks of a model, held against the model.

    Args:
        task: of a valid job file.
        model_dir: of the model that it names.
        tokenizer: of the model.
        is_whole: it is yet to be split, so it may be larger than a job.

    Raises:
        InputRefused: it doesn't fit the model, or breaks a limit.
        ModelRefused: the model's files are broken, or its tokenizer isn't the model's.
    """
    if task.prompts_file:
        raise InputRefused("prompts_file is read where the job file is: here prompts are needed")
    if bool(task.prompt) == bool(task.prompts):
        raise InputRefused("exactly one of prompt, prompts and prompts_file must be given")
    config = load_config(model_dir)
    if tokenizer.vocabulary > config.vocab_size:
        excess = f"{tokenizer.vocabulary} tokens, its model {config.vocab_size}"
        raise ModelRefused(f"the tokenizer of {model_dir.name} has {excess}")
    job = LmInput(
        prompts=tuple(tokenizer.encode(prompt) for prompt in task.prompts or (task.prompt,)),
        max_tokens=task.max_tokens,
        seed=task.seed,
        temperature_milli=task.temperature_milli,
        top_k=task.top_k,
        eos=_end_tokens(model_dir) if task.eos else (),
        top_p_milli=task.top_p_milli,
        repetition_milli=task.repetition_penalty_milli,
        stop=tuple(text.encode() for text in task.stop),
        logprobs=NO_LOGPROBS if task.logprobs is None else task.logprobs,
    )
    job.check(vocabulary=config.vocab_size, positions=config.max_position_embeddings, is_whole=is_whole)
    if job.stop:
        TokenBytes((model_dir / "tokenizer.json").read_bytes())
    return job


def text_output(
    task: Mapping[str, Any],
    input: bytes | None,
    models: Mapping[str, ModelPlace],
    tokenizers: Mapping[str, TextTokenizer],
) -> TextOutput | None:
    """What makes text of a job's units; None where they aren't text, or the model isn't known here any more.

    Args:
        task: of the job's specification, as plain data.
        input: of the part that the units are of; None for all that the task asks for.
        models: local models by name.
        tokenizers: of the models that write text, by name.
    """
    name = task.get("model", "")
    if task.get("workload") != LM.name or name not in models or name not in tokenizers:
        return None
    place, tokenizer = models[name], tokenizers[name]
    try:
        job = (
            decode_input(input)
            if input is not None
            else text_input(msgspec.convert(task, LmTask), place.path, tokenizer, is_whole=True)
        )
        return TextOutput(job, place.path, tokenizer)
    except (WorkloadRefused, msgspec.ValidationError):
        return None  # The model was replaced since.


def _end_tokens(model_dir: Path) -> tuple[int, ...]:
    """The tokens by which a model says that it has finished."""
    found = json.loads((model_dir / "config.json").read_bytes()).get("eos_token_id")
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    if any(type(token) is not int for token in tokens):
        raise ModelRefused(f"eos_token_id must be an integer or a list of them, got {found!r}")
    return tuple(tokens)


class TextOutput:
    """What people see of a job's units: its text as it comes, and each prompt's when it is over.

    Args:
        job: what was asked for; a whole that was split, or a part of it.
        model_dir: of the model.
        tokenizer: of the model.
    """

    def __init__(self, job: LmInput, model_dir: Path, tokenizer: TextTokenizer) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._pieces = TokenBytes((model_dir / "tokenizer.json").read_bytes()) if job.stop else None
        self._outputs = Outputs(job, self._pieces)
        self._waiting: list[int] = []
        self._shown: _Shown | None = None

    def feed(self, units: Sequence[int]) -> str:
        """The text that more units add."""
        parts = []
        for token in self._tokens(units):
            if self._outputs.is_done:
                break
            output = self._outputs.take(token)
            if len(output.tokens) == 1:
                self._shown = _Shown(self._tokenizer.stream(), self._job)
                parts.append(self._heading(output))
            if self._shown is not None:
                parts.append(self._shown.feed(token, output.reason))
        return "".join(parts)

    def text(self, units: Sequence[int]) -> str:
        """All of the text."""
        return "".join(
            self._heading(output) + self._text(output)
            for output in outputs_of(self._job, units, self._pieces)
        )

    def results(
        self, units: Sequence[int], read: Callable[[Blob], bytes] | None = None
    ) -> list[dict[str, Any]]:
        """Each prompt's result, as plain data.

        Args:
            units: of the output.
            read: the content of a blob, where log-probabilities are wanted.
        """
        outputs = outputs_of(self._job, units, self._pieces)
        rows: list[dict[str, Any]] = [
            {
                "number": self._number(output),
                "prompt": self._prompt(output),
                "text": self._text(output),
                "finish": output.reason,
                "tokens": len(output.tokens),
            }
            for output in outputs
        ]
        if self._job.logprobs != NO_LOGPROBS and read is not None:
            try:
                values = iter(list(self._logprobs(units, read)))
            except InputRefused:
                return rows  # The blobs were given up since.
            for row, output in zip(rows, outputs, strict=True):
                row["logprobs"] = [
                    self._described(token, value) for token, value in zip(output.tokens, values, strict=False)
                ]
        return rows

    def _tokens(self, units: Sequence[int]) -> list[int]:
        if self._job.logprobs == NO_LOGPROBS:
            return [unit for unit in units if unit != END_UNIT]
        # What the words of an unfinished chunk are can't be told yet.
        self._waiting += units
        tokens = []
        while len(self._waiting) >= LM_CHUNK_UNITS:
            chunk, self._waiting = self._waiting[:LM_CHUNK_UNITS], self._waiting[LM_CHUNK_UNITS:]
            tokens += chunk[: self._job.chunk_tokens]
        return tokens

    def _heading(self, output: Output) -> str:
        """What stands before one of several texts."""
        if len(self._job.prompts) == 1 and not self._job.first_prompt:
            return ""
        number = self._number(output)
        return f"{'' if number == 1 else chr(10) * 2}[{number}] {self._prompt(output)}"

    def _number(self, output: Output) -> int:
        return self._job.first_prompt + output.prompt + 1

    def _prompt(self, output: Output) -> str:
        return self._tokenizer.decode(self._job.prompts[output.prompt])

    def _text(self, output: Output) -> str:
        text = self._tokenizer.decode(output.tokens)
        return _without_stop(text, self._job) if output.reason == "stop" else text

    def _logprobs(self, units: Sequence[int], read: Callable[[Blob], bytes]) -> Iterator[Logprobs]:
        for words in words_of(self._job, units):
            yield from read_logprobs(read(blob_from_words(words)), self._job.logprobs)

    def _described(self, token: int, value: Logprobs) -> dict[str, Any]:
        top = [
            {"token": other, "text": self._tokenizer.decode([other]), "micronats": -micro}
            for other, micro in value.likeliest
        ]
        return {"token": token, "text": self._tokenizer.decode([token]), "micronats": -value.own, "top": top}


@dataclass(slots=True)
class _Shown:
    """One prompt's text as it comes: what may turn out to begin a stop text is held back."""

    stream: TextStream
    job: LmInput
    text: str = field(default="")
    released: int = 0

    def feed(self, token: int, reason: str | None) -> str:
        self.text += self.stream.feed([token])
        if reason is None:
            held = max((len(stop.decode()) for stop in self.job.stop), default=1) - 1
            return self._release(max(self.released, len(self.text) - held))
        self.text += self.stream.finish()
        if reason == "stop":
            self.text = _without_stop(self.text, self.job)
        return self._release(len(self.text))

    def _release(self, stop: int) -> str:
        new = self.text[self.released : stop]
        self.released = stop
        return new


def _without_stop(text: str, job: LmInput) -> str:
    """A text up to the first stop text in it."""
    places = [place for stop in job.stop if (place := text.find(stop.decode())) >= 0]
    return text[: min(places, default=len(text))]
