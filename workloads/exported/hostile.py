"""Runs of programs that cheat, for hostile test peers: one operator is another than the client's.

As many values as the honest program has, so that such a peer can state in a dispute what it really did.
"""

from __future__ import annotations

from dataclasses import replace

from workloads.exported.kind import ALTERED_OPERATOR, SKIPPED_OPERATOR
from workloads.program.interpreter import infer
from workloads.program.program import Program, Step, ValueSpec

__all__ = ["program_of_cheat"]

# What changes nearly any tensor; left out, it shows.
_FUNCTIONS = frozenset(
    ("relu", "gelu", "silu", "tanh", "sigmoid", "exp", "log", "softmax", "log_softmax", "scale", "negate")
)
_OTHER = {"exact14": "exact21", "exact21": "exact14"}


def program_of_cheat(variant: str, program: Program) -> Program:
    """The steps that a cheater runs in place of a client's.

    Args:
        variant: one of the kind's.
        program: the client's, in a profile; it ends in a digest, which stays.
    """
    other = {ALTERED_OPERATOR: _altered, SKIPPED_OPERATOR: _skipped}[variant]
    specs, first = infer(program), len(program.inputs)
    for index, step in reversed(list(enumerate(program.steps[:-1]))):
        found = other(step, [specs[value] for value in step.inputs], specs[first + index])
        if found is not None:
            return _with_step(program, index, found)
    # Nothing to alter or to skip: the last operator's result is made up.
    index = len(program.steps) - 2
    return _with_step(program, index, _zeros(specs[first + index])) if index >= 0 else program


def _altered(step: Step, inputs: list[ValueSpec], output: ValueSpec) -> Step | None:
    """The last contraction in the other profile, so that only its lowest bits are wrong."""
    given = dict(step.attributes)
    if "precision" not in given:
        return None
    changed = given | {"precision": _OTHER[str(given["precision"])]}
    return replace(step, attributes=tuple(changed.items()))


def _skipped(step: Step, inputs: list[ValueSpec], output: ValueSpec) -> Step | None:
    """The last function of one tensor left out: what it takes is handed on as what it gives."""
    if step.op not in _FUNCTIONS:
        return None
    return Step("cast", step.inputs, (("dtype", output.dtype),))


def _with_step(program: Program, index: int, step: Step) -> Program:
    return Program(program.inputs, (*program.steps[:index], step, *program.steps[index + 1 :]))


def _zeros(spec: ValueSpec) -> Step:
    return Step("full", (), (("dtype", spec.dtype), ("shape", spec.shape), ("value", (0.0).hex())))
