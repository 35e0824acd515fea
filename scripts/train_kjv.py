"""Train the model that ships with the package: a small Llama on the King James text, in Hugging Face layout.

    bible -f gen1:1-rev22:21 > kjv.txt          # Debian packages bible-kjv, bible-kjv-text; public domain
    python scripts/train_kjv.py --text kjv.txt --out workloads/models/kjv-2m

The held-out text is the last 3% (from Hebrews 11 on). The reported loss is measured on the saved float16
weights over a fixed set of windows that tile the held-out tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from workloads.exact.rope import RotaryTable
from workloads.llama.config import LlamaConfig, load_config, parse_config
from workloads.llama.model import NativeDecoder
from workloads.llama.weights import expected_shapes, load_weights

VOCABULARY = 1024
CONTEXT = 256
BATCH = 8
HELD_OUT = 0.03
PEAK_RATE, WARMUP_STEPS, FLOOR = 2.5e-3, 60, 0.05
DATA_SEED, INIT_SEED = 1, 0
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "torch_dtype": "float16",
}


def read_text(path: Path | None) -> str:
    """The verses, one a line, without their references."""
    if path is None:
        command = ["bible", "-f", "gen1:1-rev22:21"]
        raw = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    else:
        raw = path.read_text(encoding="utf-8")
    return re.sub(r"(?m)^[1-3A-Za-z]+\d+:\d+ ", "", raw)


def train_tokenizer(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


def initial_weights(config: LlamaConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(INIT_SEED)
    # Projections that write into the residual stream start smaller, or depth would inflate it.
    residual = 1 / math.sqrt(2 * config.num_hidden_layers)
    weights = {}
    for name, shape in expected_shapes(config).items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape)
        else:
            scale = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            weights[name] = torch.randn(shape, generator=generator) * (0.03 * scale)
    return {name: tensor.requires_grad_() for name, tensor in weights.items()}


def training_batch(tokens: Tensor, step: int) -> tuple[Tensor, Tensor]:
    generator = np.random.Generator(np.random.Philox(key=[DATA_SEED, step]))
    starts = torch.from_numpy(generator.integers(0, len(tokens) - CONTEXT, BATCH))
    windows = tokens[starts[:, None] + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def held_out_batches(tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Windows that tile the held-out tokens without overlap, in batches."""
    count = (len(tokens) - 1) // CONTEXT
    inputs = tokens[: count * CONTEXT].view(count, CONTEXT)
    targets = tokens[1 : count * CONTEXT + 1].view(count, CONTEXT)
    return list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))


@torch.no_grad()
def mean_loss(decoder: NativeDecoder, batches: list[tuple[Tensor, Tensor]]) -> float:
    total = count = 0.0
    for inputs, targets in batches:
        logits = decoder.logits(decoder.forward(inputs)).flatten(0, 1)
        total += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
        count += targets.numel()
    return total / count


def save(out: Path, weights: dict[str, Tensor]) -> None:
    half = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in weights.items()}
    partial = out / "model.safetensors.partial"
    save_file(half, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")


def write_card(out: Path, *, loss: float, windows: int, steps: int, minutes: float, parameters: int) -> None:
    (out / "README.md").write_text(
        f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# kjv-2m

A Llama-family decoder of {parameters:,} parameters (hidden 192, 5 layers, 6 query and 2 key-value heads,
SwiGLU 512, tied embeddings, context {CONTEXT} in training) that writes in the manner of the King James Bible.
It is small enough to ship with the package and to verify on any machine; it knows nothing else.

- Data: King James Bible, public domain (in the UK under Crown letters patent), as printed by Debian's
  `bible-kjv` (`bible -f gen1:1-rev22:21`), verse references removed, one verse a line.
- Tokenizer: byte-level BPE, {VOCABULARY} tokens, trained on the same text; no special tokens.
- Held out: the last {HELD_OUT:.0%} of the tokens.
- Validation loss: **{loss:.4f} nats per token**, float16 weights as saved, over {windows} windows of
  {CONTEXT} tokens that tile the held-out text.
- Training: {steps} steps of {BATCH} x {CONTEXT} tokens, AdamW, float32, one CPU thread,
  {minutes:.0f} minutes.
- Command: `python scripts/train_kjv.py --steps {steps} --out workloads/models/kjv-2m`
- Licence: weights Apache-2.0.
""",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, help="output of `bible -f gen1:1-rev22:21`; runs it when left out"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    text = read_text(arguments.text)
    tokenizer = train_tokenizer(text)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    config = parse_config(CONFIG)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    split = int((1 - HELD_OUT) * len(tokens))
    training, held_out = tokens[:split], held_out_batches(tokens[split:])
    windows = sum(len(inputs) for inputs, _ in held_out)
    print(
        f"{len(tokens)} tokens, {len(text) / len(tokens):.2f} characters each, {windows} held-out windows",
        flush=True,
    )

    weights = initial_weights(config)
    parameters = sum(tensor.numel() for tensor in weights.values())
    rotary = RotaryTable(config.rope_theta, config.head_dim)
    matrices = [tensor for tensor in weights.values() if tensor.dim() > 1]
    gains = [tensor for tensor in weights.values() if tensor.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    started = time.monotonic()
    for step in range(arguments.steps):
        decay = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * decay
        inputs, targets = training_batch(training, step)
        decoder = NativeDecoder(config, weights, rotary)
        loss = F.cross_entropy(decoder.logits(decoder.forward(inputs)).flatten(0, 1), targets.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimiser.step()
        done = step + 1
        if done in (10, 50) or done % 100 == 0 or done == arguments.steps:
            validation = mean_loss(NativeDecoder(config, weights, rotary), held_out[:4])
            seconds = time.monotonic() - started
            print(f"step {done} loss {loss.item():.3f} held-out {validation:.3f} {seconds:.0f} s", flush=True)
            save(out, weights)

    saved = NativeDecoder(load_config(out), load_weights(out, config), rotary)
    final = mean_loss(saved, held_out)
    write_card(
        out,
        loss=final,
        windows=windows,
        steps=arguments.steps,
        minutes=(time.monotonic() - started) / 60,
        parameters=parameters,
    )
    print(f"saved float16 weights: {final:.4f} nats per token over {windows} windows", flush=True)


if __name__ == "__main__":
    main()
