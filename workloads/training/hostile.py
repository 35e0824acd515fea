"""Training runs that cheat, for hostile test peers: other steps in place of those that the job asks for.

What such a peer runs is a program with as many values as the honest one, so that in a dispute it can state,
value by value, what it really did. It then loses by one operator instead of by silence.
"""

from __future__ import annotations

from dataclasses import replace

from workloads.program import Program, Step, Value, ValueSpec, infer
from workloads.training.kind import ALTERED_STEP
from workloads.training.step import Moments

__all__ = ["program_of_cheat"]

_LONGER = 1.01
_STATE_INPUTS = dict(zip(Moments._fields, (0, 2, 3), strict=True))
"""Which input of an optimiser step is the state that it replaces; the other one is the gradient."""


def program_of_cheat(variant: str, program: Program, losses: Value | None = None) -> Program:
    """The steps that a cheater runs in place of a chunk's.

    Args:
        variant: one of the kind's.
        program: of a chunk of ``training.run``.
        losses: the value that holds them; by default what its digest covers.
    """
    if variant == ALTERED_STEP:
        steps = _longer_steps(program)
    else:
        steps = _without_last_step(program, _losses(program) if losses is None else losses)
    return Program(program.inputs, tuple(steps))


def _longer_steps(program: Program) -> list[Step]:
    """Every step of the optimiser a hundredth longer."""
    return [_longer(step) if step.op == "adamw" else step for step in program.steps]


def _longer(step: Step) -> Step:
    rate = float.fromhex(str(dict(step.attributes)["learning_rate"]))
    changed = dict(step.attributes) | {"learning_rate": (rate * _LONGER).hex()}
    return replace(step, attributes=tuple(changed.items()))


def _without_last_step(program: Program, losses: Value) -> list[Step]:
    """No backward pass and no update after the last loss: gradients are zeros, and the state stays."""
    first, specs = len(program.inputs), infer(program)
    numbers = [_number(step) for step in program.steps]
    updates = [index for index, number in enumerate(numbers) if number == max(numbers)]
    steps = list(program.steps)
    for index in range(_last_loss(program, losses) + 1, updates[0]):
        steps[index] = _zeros(specs[first + index])
    for index in updates:
        wanted = str(dict(steps[index].attributes)["wanted"])
        kept = steps[index].inputs[_STATE_INPUTS[wanted]]
        steps[index] = Step("cast", (kept,), (("dtype", specs[first + index].dtype),))
    return steps


def _losses(program: Program) -> Value:
    _, losses, _ = next(step for step in reversed(program.steps) if step.op == "chunk_digest").inputs
    return losses


def _last_loss(program: Program, losses: Value) -> int:
    """The step that gives the loss before the last update."""
    first = len(program.inputs)
    reshaped = program.steps[losses - first].inputs[-1]
    return program.steps[reshaped - first].inputs[0] - first


def _number(step: Step) -> int:
    """Of the optimiser's step, or 0 if it is none."""
    return int(str(dict(step.attributes)["step"])) if step.op == "adamw" else 0


def _zeros(spec: ValueSpec) -> Step:
    return Step("full", (), (("dtype", spec.dtype), ("shape", spec.shape), ("value", (0.0).hex())))
