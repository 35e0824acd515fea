"""The loss of a multilayer perceptron that classifies rows of numbers, as steps of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workloads.program import Builder, Value

__all__ = ["classifier_loss", "classifier_shapes"]


def classifier_shapes(widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters, for features, hidden layers and classes of these widths."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(len(widths) - 1):
        shapes[f"layers.{index}.bias"] = (widths[index + 1],)
        shapes[f"layers.{index}.weight"] = (widths[index + 1], widths[index])
    return shapes


def classifier_loss(
    builder: Builder,
    widths: Sequence[int],
    parameters: Mapping[str, Value],
    features: Value,
    targets: Value,
    *,
    precision: str,
) -> Value:
    """Mean cross-entropy of the classes.

    Args:
        builder: takes the steps.
        widths: as for `classifier_shapes`.
        parameters: a value for each of its names.
        features: (rows, widths[0]).
        targets: (rows,) int64.
        precision: an exact profile.

    Returns:
        A scalar.
    """
    rows = features
    for index in range(len(widths) - 1):
        if index:
            rows = builder.apply("relu", rows)
        layer = f"layers.{index}."
        rows = builder.apply(
            "linear", rows, parameters[layer + "weight"], parameters[layer + "bias"], precision=precision
        )
    return builder.apply("cross_entropy", rows, targets)
