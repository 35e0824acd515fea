"""Reverse-mode differentiation that writes the backward pass as ordinary steps of the same program.

Each differentiable operator has a rule here that emits steps computing the gradients of its inputs from the
gradient of its output. So a training step is one program, and a dispute about a gradient ends at one
operator like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workloads.errors import ProgramRefused
from workloads.program.builder import Builder, Value
from workloads.program.operators.registry import find
from workloads.program.program import Step

__all__ = ["Node", "differentiable", "gradient", "rule"]


@dataclass(frozen=True, slots=True)
class Node:
    """A step being differentiated.

    Args:
        builder: takes the steps of the backward pass.
        inputs: the step's inputs.
        output: its output.
        gradient: of the loss in the output.
        attributes: as the operator takes them.
    """

    builder: Builder
    inputs: tuple[Value, ...]
    output: Value
    gradient: Value
    attributes: dict[str, Any]

    def apply(self, op: str, *inputs: Value, **attributes: Any) -> Value:
        """As `Builder.apply`."""
        return self.builder.apply(op, *inputs, **attributes)

    def shape(self, value: Value) -> tuple[int, ...]:
        """As `Builder.shape`."""
        return self.builder.shape(value)


Emit = Callable[[], Value]
"""Emits one input's gradient; not called where nobody needs it."""

Rule = Callable[[Node], Sequence[Emit | None]]
"""For each input of a step, what emits its gradient; None for those that have none, such as indices."""

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function for operators of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"operator {name!r} has two rules")
            _RULES[name] = function
        return function

    return register


def differentiable() -> list[str]:
    """Names of the operators that have a rule, sorted."""
    return sorted(_RULES)


def gradient(builder: Builder, loss: Value, parameters: Sequence[Value]) -> list[Value]:
    """Append the backward pass of a loss.

    Args:
        builder: holds the forward pass; extended.
        loss: a scalar.
        parameters: values to differentiate with respect to; the loss must depend on each.

    Returns:
        For each parameter a value of its shape, float64.

    Raises:
        ProgramRefused: the loss isn't a scalar or doesn't depend on a parameter, or an operator in between
            has no rule.
    """
    if builder.shape(loss) != ():
        raise ProgramRefused(f"loss of shape {builder.shape(loss)} must be a scalar")
    first_step = len(builder.inputs)
    forward: list[Step] = list(builder.steps)
    needed = set(parameters)
    for output, step in enumerate(forward, start=first_step):
        if needed.intersection(step.inputs):
            needed.add(output)
    gradients: dict[Value, Value] = {loss: builder.apply("full", shape=(), value=1.0, dtype="float64")}
    for output in range(loss, first_step - 1, -1):
        step = forward[output - first_step]
        if output not in gradients or not needed.intersection(step.inputs):
            continue
        if step.op not in _RULES:
            raise ProgramRefused(f"operator {step.op!r} has no gradient")
        attributes = find(step.op).parse(step.attributes)
        node = Node(builder, step.inputs, output, gradients[output], attributes)
        for value, emit in zip(step.inputs, _RULES[step.op](node), strict=True):
            if emit is None or value not in needed:
                continue
            new = emit()
            known = gradients.get(value)
            gradients[value] = new if known is None else builder.apply("add", known, new)
    for parameter in parameters:
        if parameter not in gradients:
            raise ProgramRefused(f"the loss doesn't depend on value {parameter}")
    return [gradients[parameter] for parameter in parameters]
