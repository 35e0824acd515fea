"""Which operators of exported graphs run in programs, and as what.

An operator that isn't listed is refused by name; so is one with an argument that its entry doesn't ask for,
and any use that exact arithmetic doesn't cover. Floating values are carried as float64 whatever type the
graph gives them, so a cast between floating types is nothing, and truth values as uint8.
"""

from workloads.program.aten import elementwise, layers, shapes
from workloads.program.aten.arguments import OPERATORS, Arguments, Ref, apply

__all__ = ["OPERATORS", "Arguments", "Ref", "apply"]

del elementwise, layers, shapes  # Imported to register their rules.
