"""Programs of exact operators: what a job computes, down to steps that anyone can check alone."""

from workloads.program import gradient_rules as _rules  # registers them
from workloads.program import operators as _operators  # registers them
from workloads.program.builder import Builder, Value
from workloads.program.gradients import differentiable, gradient
from workloads.program.interpreter import execute, infer, infer_step, run, trace
from workloads.program.limits import Limits
from workloads.program.operators.registry import find, names, operator
from workloads.program.program import (
    DIGEST_SPEC,
    DTYPES,
    JOB,
    PARAMETER,
    Attribute,
    Program,
    ProgramInput,
    Step,
    ValueSpec,
    decode_program,
    encode_program,
    spec_of,
    value_digest,
)

__all__ = [
    "DIGEST_SPEC",
    "DTYPES",
    "JOB",
    "PARAMETER",
    "Attribute",
    "Builder",
    "Limits",
    "Program",
    "ProgramInput",
    "Step",
    "Value",
    "ValueSpec",
    "decode_program",
    "differentiable",
    "encode_program",
    "execute",
    "find",
    "gradient",
    "infer",
    "infer_step",
    "names",
    "operator",
    "run",
    "spec_of",
    "trace",
    "value_digest",
]

del _operators, _rules
