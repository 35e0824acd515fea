"""The text workload's side of a job file: from prompts to tokens, and from tokens to each prompt's text."""

from __future__ import annotations

from pathlib import Path

from p2p_node.taskspec import LmTask
from workloads.llama.config import load_config
from workloads.lm.input import LmInput
from workloads.lm.tokenizer import TextTokenizer

__all__ = ["text_input"]


def text_input(task: LmTask, model_dir: Path, tokenizer: TextTokenizer, *, is_whole: bool) -> LmInput:
    """What a task asks of a model, held against the model.

    Args:
        task: of a valid job file.
        model_dir: of the model that it names.
        tokenizer: of the model.
        is_whole: it is yet to be split, so it may be larger than a job.

    Raises:
        InputRefused: it doesn't fit the model, or breaks a limit.
        ModelRefused: the model's files are broken.
    """
    config = load_config(model_dir)
    job = LmInput(
        prompts=(tokenizer.encode(task.prompt),),
        max_tokens=task.max_tokens,
        seed=task.seed,
        temperature_milli=task.temperature_milli,
        top_k=task.top_k,
    )
    job.check(vocabulary=config.vocab_size, positions=config.max_position_embeddings, is_whole=is_whole)
    return job
