"""Running ``speech.transcribe``: a chunk is a window of 30 s at most, its units are the tokens heard.

A chunk's digest covers the encoder's states and those from which each token was chosen, in float64. The cheap
check encodes the window again and passes all claimed tokens through the decoder at once, where the executor
had to write them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from protocols.blobs import Blob
from protocols.units import FALSE_UNITS
from workloads.blobs import NO_BLOBS, Blobs
from workloads.chunkwise import Chunk
from workloads.errors import ModelRefused, NumericsRefused
from workloads.fingerprint import PPB
from workloads.lm.manifest import WEIGHTS_FILE, load_manifest
from workloads.profiled import Profiled
from workloads.program import value_digest
from workloads.speech.config import load_config
from workloads.speech.decoding import choose, miss
from workloads.speech.input import (
    PADDING,
    SAMPLE_BYTES,
    WINDOW_TOKENS,
    TranscribeInput,
    decode_input,
)
from workloads.speech.kind import SHORT_HEARING, SPEECH
from workloads.speech.mel import FRAMES, log_mel
from workloads.speech.network import Network

__all__ = ["Transcriber"]

_HEARD_ROWS = 4


class Transcriber(Profiled[TranscribeInput]):
    """One loaded model in one numerics profile.

    Args:
        model_dir: the model's directory.
        profile: of the kind's.
        variant: how to cheat while generating, or None.
        expected_digest: what the files must hash to, if known.
        blobs: where recordings lie.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the directory is not such a model, or hashes to something else.
        NumericsRefused: a weight is NaN, Inf or too large.
    """

    def __init__(
        self,
        model_dir: Path,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        model = load_manifest(model_dir).digest
        super().__init__(
            SPEECH, model, profile, variant, expected_digest=expected_digest, model_dir=model_dir
        )
        self._blobs = blobs
        self._recording: tuple[Blob, bytes] | None = None
        config = load_config(model_dir)
        if config.max_source_positions != FRAMES // 2:
            raise ModelRefused(f"config.json: max_source_positions must be {FRAMES // 2}")
        if config.max_target_positions < len(config.prompt_tokens) + WINDOW_TOKENS:
            raise ModelRefused(
                f"config.json: max_target_positions must hold prompt and {WINDOW_TOKENS} tokens"
            )
        self._config = config
        self._network = Network(config, load_file(model_dir / WEIGHTS_FILE), self._numerics.precision)

    def decode(self, input: bytes) -> TranscribeInput:
        """See `Chunkwise`."""
        return decode_input(input)

    def units_total(self, job: TranscribeInput) -> int:
        """See `Chunkwise`."""
        return job.units_total

    def derive(self, job: TranscribeInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; windows don't depend on each other."""
        return self._write(self._hear(self._samples(job, chunk)))

    def produce(self, job: TranscribeInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; the cheater hears half of a window only."""
        samples = self._samples(job, chunk)
        if self._variant == SHORT_HEARING:
            samples = samples[: len(samples) // 2]
        return self._write(self._hear(samples))

    def check(self, job: TranscribeInput, units: Sequence[int], number: int, claimed: list[int]) -> bytes:
        """See `Chunkwise`: every claimed token in one pass."""
        if self._numerics.precision is None and not self._numerics.has_fingerprints:
            # One pass has other bits than tokens one by one.
            return super().check(job, units, number, claimed)
        tokens = claimed[: claimed.index(PADDING)] if PADDING in claimed else claimed
        is_whole = len(claimed) == WINDOW_TOKENS and all(unit == PADDING for unit in claimed[len(tokens) :])
        if not is_whole or any(token >= self._config.vocab_size for token in tokens):
            return FALSE_UNITS
        try:
            heard = self._hear(self._samples(job, number))
            states = self._states(heard, tokens)
            if not self._follow(states, tokens):
                return FALSE_UNITS
        except NumericsRefused:
            if self._numerics.has_fingerprints:
                raise
            # From this very window an honest executor would have been refused too.
            return FALSE_UNITS
        return self.digest(number, _chunk(claimed, heard, states))

    def _samples(self, job: TranscribeInput, chunk: int) -> Tensor:
        data = job.samples
        if job.blob is not None:
            if self._recording is None or self._recording[0] != job.blob:
                self._recording = job.blob, self._blobs.read(job.blob)
            data = self._recording[1]
        window = job.window(chunk)
        part = data[window.start * SAMPLE_BYTES : window.stop * SAMPLE_BYTES]
        return torch.frombuffer(bytearray(part), dtype=torch.int16)

    def _hear(self, samples: Tensor) -> Tensor:
        is_native = self._numerics.precision is None
        return self._network.encode(log_mel(samples, self._network.filters, is_native=is_native))

    def _write(self, heard: Tensor) -> Chunk:
        """The tokens heard, one after the other."""
        memory = self._network.listen(heard)
        given = list(self._config.prompt_tokens)
        tokens: list[int] = []
        rows: list[Tensor] = []
        while len(tokens) < WINDOW_TOKENS:
            states = self._network.decode(torch.tensor(given), memory)[-1:]
            rows.append(states)
            token = choose(self._config, self._network.logits(states)[0].double(), tokens)
            if token == self._config.eos_token_id:
                break
            tokens.append(token)
            given = [token]
        padded = tokens + [PADDING] * (WINDOW_TOKENS - len(tokens))
        return _chunk(padded, heard, torch.cat(rows))

    def _states(self, heard: Tensor, tokens: Sequence[int]) -> Tensor:
        """The states from which each token was chosen, and the end if there is room for it."""
        prompt = self._config.prompt_tokens
        given = [*prompt, *tokens][: len(prompt) + WINDOW_TOKENS - 1]
        return self._network.decode(torch.tensor(given), self._network.listen(heard))[len(prompt) - 1 :]

    def _follow(self, states: Tensor, tokens: Sequence[int]) -> bool:
        """Whether these tokens, and then the end, are what the states say, as far as the profile can tell."""
        wanted = [*tokens, self._config.eos_token_id][:WINDOW_TOKENS]
        logits = self._network.logits(states).double()
        if not self._numerics.has_fingerprints:
            return all(
                choose(self._config, logits[place], wanted[:place]) == token
                for place, token in enumerate(wanted)
            )
        misses = (
            miss(self._config, logits[place], wanted[:place], token) for place, token in enumerate(wanted)
        )
        self.missed_ppb = round(PPB * max(misses))
        return self.missed_ppb <= self._margin_ppb


def _chunk(units: list[int], heard: Tensor, states: Tensor) -> Chunk:
    inner = value_digest(heard) + value_digest(states)
    rows = (*heard.flatten().tensor_split(_HEARD_ROWS), states)
    return Chunk(units, inner, rows)
