"""A chunk of ``lm.generate`` as a program: a prefill for each prompt, and the draw of all its tokens.

The last value is the digest that `workloads.lm.generate.LmExecutor.recompute` gives. Sequences are cut into
blocks of rows and the heads into groups, so that what one operator takes stays small enough to be shown to
strangers; the cut follows from the model's configuration, so every peer makes the same one. Which units are
whose follows from the job and the units, so it isn't computed but decides which program it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from protocols.effects import Case
from workloads.errors import InputRefused, ModelRefused
from workloads.llama.config import LlamaConfig, read_config
from workloads.llama.weights import expected_shapes
from workloads.lm.input import NO_LOGPROBS, LmInput, chunk_range, decode_input
from workloads.lm.layout import Layout, Slice
from workloads.lm.pieces import TokenBytes
from workloads.lm.sampling import noise_position
from workloads.program.builder import Builder, Value
from workloads.program.context import open_context
from workloads.program.program import JOB, PARAMETER, Program, ValueSpec, value_digest
from workloads.program.referee import Rebuilt

__all__ = ["TOKENS", "UNITS", "ChunkJob", "block_rows", "build_program", "rebuild"]

TOKENS = "tokens"
"""Inputs that the job gives: a prompt and its claimed output up to the chunk's end. Those of a second prompt
are called ``tokens.1``, and so on."""

UNITS = "units"
"""The input that holds the chunk's units as claimed."""

_EXACT = ("exact14", "exact21")
_BLOCK_BYTES = 1 << 19
_BLOCK_ROWS_MIN = 16


def block_rows(config: LlamaConfig) -> int:
    """Positions that one operator takes: a power of two whose widest float64 rows fit half a mebibyte."""
    widest = max(config.hidden_size, config.intermediate_size, config.query_size + 2 * config.key_value_size)
    fitting = _BLOCK_BYTES // (8 * widest)
    return max(_BLOCK_ROWS_MIN, 1 << max(fitting, 1).bit_length() - 1)


class ChunkJob:
    """What a chunk takes of its job: the tokens of each prompt in it, and which of them are the chunk's.

    Args:
        job: what is generated.
        units: the claimed output, at least as far as the chunk's end.
        chunk: its number.
        pieces: bytes of tokens, for stop texts.

    Raises:
        InputRefused: the chunk doesn't exist, or a stop text needs ``pieces``.
    """

    def __init__(self, job: LmInput, units: Sequence[int], chunk: int, pieces: TokenBytes | None) -> None:
        if len(units) > job.units_max:
            raise InputRefused(f"output of {len(units)} units exceeds the {job.units_max} there can be")
        layout = Layout(job, pieces)
        layout.read_all(units[: chunk_range(chunk, len(units)).stop])
        self.job = job
        self.chunk = chunk
        self.view = layout.views[chunk]
        last = layout.outputs[-1] if layout.outputs else None
        self.slices = self.view.slices if self.view.is_sound else []
        if self.view.is_sound and not self.slices and last is not None:
            # An end alone goes with the last token's state.
            self.slices = [Slice(last.prompt, len(last.tokens) - 1, len(last.tokens))]
        self._outputs = layout.outputs

    def length(self, part: Slice) -> int:
        """Tokens of a slice's prompt and of its output up to the slice's end."""
        return len(self.job.prompts[part.prompt]) + part.stop

    def values(self) -> dict[str, Tensor]:
        """The inputs that the job gives, int64."""
        named = {UNITS: self.view.units}
        for index, part in enumerate(self.slices):
            prompt = self.job.prompts[part.prompt]
            named[_tokens_name(index)] = [*prompt, *self._outputs[part.prompt].tokens[: part.stop]]
        return {name: torch.tensor(value, dtype=torch.int64) for name, value in named.items()}


def _tokens_name(index: int) -> str:
    return f"{TOKENS}.{index}" if index else TOKENS


def build_program(
    config: LlamaConfig, dtypes: Mapping[str, str], *, model: bytes, profile: str, given: ChunkJob
) -> Program:
    """The program of one chunk.

    Args:
        config: of the model.
        dtypes: of its tensors, as its file has them.
        model: its digest.
        profile: an exact one.
        given: the chunk.

    Raises:
        InputRefused: the profile isn't exact, or the job doesn't fit the model.
        ProgramRefused: a tensor's dtype isn't floating-point, or the model is too large for its operators.
    """
    if profile not in _EXACT:
        raise InputRefused(f"profile {profile!r} has no programs, must be one of {_EXACT}")
    given.job.check(vocabulary=config.vocab_size, positions=config.max_position_embeddings)
    return _Writer(config, dtypes, profile).write(model, given)


class _Writer:
    def __init__(self, config: LlamaConfig, dtypes: Mapping[str, str], profile: str) -> None:
        self._config = config
        self._dtypes = dtypes
        self._profile = profile
        self._builder = Builder()
        self._weights: dict[str, Value] = {}

    def write(self, model: bytes, given: ChunkJob) -> Program:
        units = self._builder.input(UNITS, ValueSpec("int64", (len(given.view.units),)), JOB)
        tokens = [
            self._builder.input(_tokens_name(index), ValueSpec("int64", (given.length(part),)), JOB)
            for index, part in enumerate(given.slices)
        ]
        for name, shape in sorted(expected_shapes(self._config).items()):
            spec = ValueSpec(self._dtypes[name], shape)
            self._weights[name] = self._builder.input(name, spec, PARAMETER)
        if not given.view.is_sound:
            self._builder.apply("lm.false_chunk", units)
            return self._builder.build()
        hidden = []
        for part, sequence in zip(given.slices, tokens, strict=True):
            # Output token i is drawn from the hidden state of the token before it.
            count = given.length(part) - 1
            first = count - (part.stop - part.start)
            hidden.append(self._hidden(part, first, self._streams(sequence, range(count), first)))
        self._finish(model, given, units, tokens, hidden)
        return self._builder.build()

    def _streams(self, tokens: Value, sequence: range, first: int) -> list[tuple[range, Value]]:
        """The residual stream after the last layer, of the blocks that hold positions from ``first`` on."""
        rows = block_rows(self._config)
        blocks = [sequence[start : start + rows] for start in sequence[::rows]]
        embedding = self._weights["model.embed_tokens.weight"]
        streams = [
            (
                block,
                self._builder.apply("llama.embed", embedding, tokens, start=block.start, count=len(block)),
            )
            for block in blocks
        ]
        for layer in range(self._config.num_hidden_layers):
            is_last = layer == self._config.num_hidden_layers - 1
            # Of positions before the chunk, the last layer needs no more than keys and values.
            streams = self._layer(f"model.layers.{layer}.", streams, first if is_last else 0)
        return streams

    def _layer(
        self, prefix: str, streams: Iterable[tuple[range, Value]], first: int
    ) -> list[tuple[range, Value]]:
        config = self._config
        heads, width = config.num_key_value_heads, config.head_dim
        group = config.num_attention_heads // heads
        seen: list[list[Value]] = [[] for _ in range(heads)]
        results = []
        for block, stream in streams:
            projected = self._project(prefix, stream)
            for head in range(heads):
                rotated = self._builder.apply(
                    "llama.keys_values",
                    projected,
                    start=block.start,
                    key=config.query_size + head * width,
                    value=config.query_size + (heads + head) * width,
                    width=width,
                    theta=config.rope_theta,
                )
                seen[head].append(rotated)
            if block.stop <= first:
                continue
            parts = []
            for head in range(heads):
                queries = self._builder.apply(
                    "llama.queries",
                    projected,
                    start=block.start,
                    column=head * group * width,
                    heads=group,
                    width=width,
                    theta=config.rope_theta,
                )
                parts.append(
                    self._builder.apply(
                        "llama.attend", queries, *seen[head], start=block.start, precision=self._profile
                    )
                )
            results.append((block, self._transform(prefix, stream, parts)))
        return results

    def _project(self, prefix: str, stream: Value) -> Value:
        gain = self._weights[prefix + "input_layernorm.weight"]
        weights = (self._weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv")
        return self._builder.apply(
            "llama.project",
            stream,
            gain,
            *weights,
            epsilon=self._config.rms_norm_eps,
            precision=self._profile,
        )

    def _transform(self, prefix: str, stream: Value, attended: Sequence[Value]) -> Value:
        output = self._weights[prefix + "self_attn.o_proj.weight"]
        stream = self._builder.apply("llama.add_linear", stream, output, *attended, precision=self._profile)
        inner = self._builder.apply(
            "llama.swiglu",
            stream,
            self._weights[prefix + "post_attention_layernorm.weight"],
            self._weights[prefix + "mlp.gate_proj.weight"],
            self._weights[prefix + "mlp.up_proj.weight"],
            epsilon=self._config.rms_norm_eps,
            precision=self._profile,
        )
        down = self._weights[prefix + "mlp.down_proj.weight"]
        return self._builder.apply("llama.add_linear", stream, down, inner, precision=self._profile)

    def _hidden(self, part: Slice, first: int, streams: Sequence[tuple[range, Value]]) -> Value:
        """The states that a slice's tokens are drawn from."""
        return self._builder.apply(
            "llama.final_norm",
            self._weights["model.norm.weight"],
            *(stream for _, stream in streams),
            first=first - streams[0][0].start,
            count=part.stop - part.start,
            epsilon=self._config.rms_norm_eps,
            precision=self._profile,
        )

    def _finish(
        self, model: bytes, given: ChunkJob, units: Value, tokens: Sequence[Value], hidden: Sequence[Value]
    ) -> None:
        job = given.job
        made: list[Value] = []
        if given.view.slices:
            logits = [self._logits(states) for states in hidden]
            drawn = [
                self._draw(job, part, rows, sequence)
                for part, rows, sequence in zip(given.slices, logits, tokens, strict=True)
            ]
            made.append(self._joined(drawn))
            if job.logprobs != NO_LOGPROBS:
                made.append(
                    self._builder.apply("lm.logprobs", self._joined(logits), made[0], count=job.logprobs)
                )
        self._builder.apply(
            "lm.chunk_digest",
            self._joined(hidden),
            units,
            *made,
            model=model,
            precision=self._profile,
            chunk=given.chunk,
            end=int(given.view.has_end),
        )

    def _logits(self, hidden: Value) -> Value:
        tied = self._config.tie_word_embeddings
        head = self._weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        return self._builder.apply("llama.logits", hidden, head, precision=self._profile)

    def _draw(self, job: LmInput, part: Slice, logits: Value, tokens: Value) -> Value:
        if job.has_penalty:
            logits = self._builder.apply("lm.penalise", logits, tokens, repetition_milli=job.repetition_milli)
        return self._builder.apply(
            "lm.sample",
            logits,
            position=noise_position(job, part.prompt, part.start),
            seed=job.seed.to_bytes(8, "little"),
            temperature_milli=job.temperature_milli,
            top_k=job.top_k,
            top_p_milli=job.top_p_milli,
        )

    def _joined(self, values: Sequence[Value]) -> Value:
        return values[0] if len(values) == 1 else self._builder.apply("concat", *values, dim=0)


def rebuild(case: Case) -> Rebuilt:
    """The program of a case's chunk and the digests of its inputs, from the model's manifest.

    Raises:
        WorkloadRefused: the context isn't the model's, or the job has no such program.
    """
    manifest, contents = open_context(case.context, case.model, "config.json", "tokenizer.json")
    config = read_config(contents[0])
    parameters = {parameter.name: parameter for parameter in manifest.parameters}
    shapes = expected_shapes(config)
    for name, shape in shapes.items():
        if name not in parameters or parameters[name].shape != shape:
            raise ModelRefused(f"the model's tensor {name} must have shape {shape}")
    job = decode_input(case.input)
    pieces = TokenBytes(contents[1]) if job.stop and len(contents) > 1 else None
    given = ChunkJob(job, case.units, case.chunk, pieces)
    dtypes = {name: parameters[name].dtype for name in shapes}
    program = build_program(config, dtypes, model=case.model, profile=case.profile, given=given)
    values = {name: value_digest(value) for name, value in given.values().items()}
    return Rebuilt(
        program,
        tuple(
            values[item.name] if item.source == JOB else parameters[item.name].value
            for item in program.inputs
        ),
    )
