"""Optimiser steps as a program: forward, backward and AdamW, one after the other.

The state is float32: each step's new parameters and moments are rounded to it, so that a state is handed from
one chunk of a run to the next as 32-bit words without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from workloads.program import Builder, Value, gradient

__all__ = ["Moments", "Optimiser", "State", "StepResult", "training_step"]

Loss = Callable[[Builder, Mapping[str, Value]], Value]
"""Appends the forward pass over one batch and returns the loss."""


@dataclass(frozen=True, slots=True)
class Optimiser:
    """AdamW's settings.

    Args:
        learning_rate: of every step.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of their squares.
        epsilon: added to the root of the latter.
        weight_decay: taken off each parameter, times the learning rate.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0


class Moments(NamedTuple):
    """What the optimiser keeps for one parameter; float32, of its shape."""

    parameter: Value
    mean: Value
    variance: Value


State = dict[str, Moments]
"""By the parameters' names."""


class StepResult(NamedTuple):
    """Values of one optimiser step."""

    state: State
    loss: Value
    gradients: list[Value]


def training_step(
    builder: Builder, state: State, loss: Loss, optimiser: Optimiser, number: int
) -> StepResult:
    """Append one step.

    Args:
        builder: takes it.
        state: before the step.
        loss: appends the forward pass.
        optimiser: its settings.
        number: of the step, from 1.

    Returns:
        The state after it, the loss before it and the gradients in the order of ``state``.
    """
    total = loss(builder, {name: moments.parameter for name, moments in state.items()})
    gradients = gradient(builder, total, [moments.parameter for moments in state.values()])
    after: State = {}
    for (name, moments), slope in zip(state.items(), gradients, strict=True):

        def updated(wanted: str, moments: Moments = moments, slope: Value = slope) -> Value:
            exact = builder.apply(
                "adamw",
                moments.parameter,
                slope,
                moments.mean,
                moments.variance,
                step=number,
                learning_rate=optimiser.learning_rate,
                beta1=optimiser.beta1,
                beta2=optimiser.beta2,
                epsilon=optimiser.epsilon,
                weight_decay=optimiser.weight_decay,
                wanted=wanted,
            )
            return builder.apply("cast", exact, dtype="float32")

        after[name] = Moments(*(updated(wanted) for wanted in Moments._fields))
    return StepResult(after, total, gradients)
