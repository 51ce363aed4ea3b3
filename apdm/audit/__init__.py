"""The audit: attack the base and the hardened model side by side, and say what likeness costs the attacker on each.

plan            what is attacked, by what, and who judges (`AuditPlan`)
people          who is attacked, with which photos
models          loads the models and checks that they can be compared
suites          which attacks there are, on whom, and which the verdict requires
model_audit     the whole audit of the models: `attack_and_judge`
matrix          all attacks on all models, people and seeds, shared by the processes
cells           one of them: the model is attacked, and its pictures are judged at every measured step
class_pictures  what the models draw for the class, without an attack
store           keeps finished attacks on disk
protected_photos, photo_attacks   the audit of protected photos
results, schema                   what was found, as dataclasses, and results.json
rows, checks, verdict             from the rows to figures, checks and the verdict; pure functions
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from apdm.audit.model_audit import attack_and_judge
from apdm.audit.plan import AuditPlan
from apdm.audit.results import SCHEMA, Results, read_results, results_schema, write_results

__all__ = ["SCHEMA", "AuditPlan", "Results", "attack_and_judge", "read_results", "results_schema", "write_results"]


class _CallablePackage(ModuleType):
    """`apdm.audit(...)` is a function of the Python API.

    Importing this package puts the package in the place of that function, so the package passes calls on to it.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("apdm")._audit_models(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
