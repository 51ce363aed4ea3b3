"""Objectives: the losses that the defender lowers at the simulated attacker's weights.

Each objective is one file of this package, found by its name, or a file of the user's, found by its path.
"""

from apdm.protection.objectives.base import (
    OBJECTIVES,
    Errors,
    LossObjective,
    Objective,
    SimulatedAttack,
    make_objective,
)

__all__ = ["OBJECTIVES", "Errors", "LossObjective", "Objective", "SimulatedAttack", "make_objective"]
