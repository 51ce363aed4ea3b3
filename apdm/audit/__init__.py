"""The audit: run the same attacks on the base and on the hardened model, and compare what likeness costs the attacker.

A cell is one attack on one model with the photos of one person and one seed. Each cell gives one row of the results.

plan            everything that determines an audit: models, people, attacks, judges (`AuditPlan`)
people          the people who are attacked, and their photos
models          loads the models and checks that they can be compared
suites          named lists of attacks: on whom each attack runs, and whether the verdict requires it
model_audit     runs a whole audit of models: `attack_and_judge`
matrix          the list of all cells, which several processes can share
cells           runs one cell: attacks the model, and judges its pictures at every measured step
class_pictures  pictures that the models draw for the class prompt, without an attack
store           keeps finished cells on disk
protected_photos, photo_attacks, photo_verdict   the audit of protected photos
results, schema                   the content of results.json as dataclasses, and its conversion to JSON
rows, checks, verdict             pure functions: from rows to figures, from figures to checks, then the verdict
"""

import sys

from apdm.audit.common_results import SCHEMA
from apdm.audit.model_audit import attack_and_judge
from apdm.audit.photo_results import PhotoResults
from apdm.audit.plan import AuditPlan
from apdm.audit.results import Results, read_model_results, read_results, results_schema, write_results
from apdm.core.callable_package import CallablePackage

__all__ = [
    "SCHEMA",
    "AuditPlan",
    "PhotoResults",
    "Results",
    "attack_and_judge",
    "read_model_results",
    "read_results",
    "results_schema",
    "write_results",
]


sys.modules[__name__].__class__ = CallablePackage  # `apdm.audit` is also a function of the Python API
