"""Objectives: what the defender wants where the simulated attacker stands. One file each, found by name or by path."""

from apdm.protection.objectives.base import (
    OBJECTIVES,
    Errors,
    LossObjective,
    Objective,
    SimulatedAttack,
    make_objective,
)

__all__ = ["OBJECTIVES", "Errors", "LossObjective", "Objective", "SimulatedAttack", "make_objective"]
