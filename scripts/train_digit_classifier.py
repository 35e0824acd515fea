"""Trains and exports the classifier that ``examples/program.yaml`` runs; needs scikit-learn for its digits.

    pip install scikit-learn
    python scripts/train_digit_classifier.py examples/data [--seed 0]

Writes ``digits.pt2``, a graph of torch.export over 50 pictures at a time, and ``digits.npy``, 350 pictures
that it wasn't trained on, with ``digits-labels.npy``. Machines are measured by the same graph: what
``workloads/exported/probe.bin`` holds is written too, as ``probe.bin``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workloads.exported.input import encode_input
from workloads.exported.source import load_program, run_input

ROWS = 50
TEST_PICTURES = 350


class Classifier(nn.Module):
    """Two convolutions and a linear layer, over pictures of 8 x 8 pixels from 0 to 16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Linear(64, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.to(torch.float32).unsqueeze(1) / 16
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        return F.log_softmax(self.last(torch.flatten(x, 1)), dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures, labels = digits.images.astype(np.uint8), digits.target
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    order = np.random.default_rng(arguments.seed).permutation(len(pictures))
    pictures, labels = pictures[order], labels[order]
    train = torch.from_numpy(pictures[TEST_PICTURES:]), torch.from_numpy(labels[TEST_PICTURES:])
    test = torch.from_numpy(pictures[:TEST_PICTURES]), torch.from_numpy(labels[:TEST_PICTURES])
    model = Classifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(1_000):
        rows = torch.randint(len(train[0]), (128,))
        loss = F.nll_loss(model(train[0][rows]), train[1][rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    right = (model(test[0]).argmax(-1) == test[1]).float().mean()
    print(f"{100 * float(right):.1f}% of {TEST_PICTURES} pictures right")
    torch.export.save(torch.export.export(model, (test[0][:ROWS],)), arguments.folder / "digits.pt2")
    program = load_program(arguments.folder / "digits.pt2")
    probe = run_input(program, {"pictures": test[0][: 2 * ROWS].tolist()}, "npz")
    (arguments.folder / "probe.bin").write_bytes(encode_input(probe))
    np.save(arguments.folder / "digits.npy", pictures[:TEST_PICTURES])
    np.save(arguments.folder / "digits-labels.npy", labels[:TEST_PICTURES].astype(np.uint8))


if __name__ == "__main__":
    main()
