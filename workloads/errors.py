"""What can be wrong with what a user or a peer hands to a workload; our own bugs raise other errors."""

from __future__ import annotations

__all__ = ["InputRefused", "ModelRefused", "NumericsRefused", "ProgramRefused", "WorkloadRefused"]


class WorkloadRefused(Exception):
    """A model, an input or a tensor breaks a rule; the message states the rule and the value."""


class ModelRefused(WorkloadRefused):
    """A model directory is not one we can run faithfully."""


class InputRefused(WorkloadRefused):
    """A job's input is outside the limits or does not fit the model."""


class NumericsRefused(WorkloadRefused):
    """A tensor holds NaN, Inf or a magnitude that exact arithmetic does not cover."""


class ProgramRefused(WorkloadRefused):
    """A program, one of its steps or the values handed to it break a rule."""
