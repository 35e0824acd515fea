"""Whether a model runs at all: ``python -m workloads.trial DIRECTORY``, a process since it takes torch.

What a header can't tell is found by doing the kind's smallest job: tensors that aren't there or have another
shape, weights that are no numbers, another vocabulary's tokenizer. Ends with 2 and the rule that it breaks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workloads.blobs import MemoryBlobs
from workloads.errors import ModelRefused, WorkloadRefused
from workloads.registry import KINDS, open_workload

__all__ = ["main", "try_model"]

REFUSED = 2


def try_model(directory: Path) -> None:
    """Load a model and do its kind's smallest job.

    Raises:
        WorkloadRefused: it breaks a rule.
    """
    for kind in KINDS.values():
        model = kind.read_model(directory)
        if model is None:
            continue
        if (directory / "tokenizer.json").is_file():
            _check_tokenizer(directory)
        blobs = MemoryBlobs()
        workload = open_workload(kind.name, directory, kind.profiles[0], blobs=blobs)
        # What a stranger's weights make of it is of no interest, only that something comes.
        workload.generate(kind.probe(), (), lambda *_: None, lambda *_: None, lambda: False)
        return
    raise ModelRefused(f"no kind of work reads it: {', '.join(KINDS)}")


def _check_tokenizer(directory: Path) -> None:
    import json

    from workloads.lm.tokenizer import TextTokenizer

    vocabulary = TextTokenizer(directory).vocabulary
    try:
        known = json.loads((directory / "config.json").read_bytes()).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return
    if isinstance(known, int) and vocabulary > known:
        raise ModelRefused(
            f"tokenizer.json has {vocabulary} tokens, and the model's vocab_size is {known}: "
            "it is another model's"
        )


def main() -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="workloads.trial", description="Try a model.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    import torch

    torch.set_num_threads(1)
    try:
        try_model(directory)
    except WorkloadRefused as error:
        print(error)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
