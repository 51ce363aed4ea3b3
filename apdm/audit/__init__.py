"""The audit: run the same attacks on the base and on the hardened model, and compare what likeness costs the attacker.

To follow a row from attack to results.json, read `model_audit`, `cells.cell`, `cells.runner` and `results.rows`. To
follow the verdict, read `verdict`, which asks `checks` and `doubts`. A new quality figure begins in `cells.judging`.

The audit of models, in the order of the run:

inputs                what determines an audit, read and checked before any attack
model_audit           runs it: `attack_and_judge`
cells                 the attacks: each on one model, with the photos of one person and one seed
search                an attacker's search for the best options
results               the content of results.json
checks, doubts        measured values against thresholds; what makes an audit unreliable
verdict               the verdict: `judge_attacks`, then `judge`

Other audits:

one_model             attacks on one model alone, without a verdict: `apdm attack`
photo_attacks         the audit of protected photos: `attack_and_judge_photos`
photo_verdict         its verdict
tables                a table of a paper, measured again: `apdm reproduce`

This package itself exports the results alone. So reading results does not import diffusers.
"""

import sys

from apdm.audit.results.common import SCHEMA
from apdm.audit.results.file import read_model_results, read_results, results_schema, write_results
from apdm.audit.results.models import Results
from apdm.audit.results.photos import PhotoResults
from apdm.core.callable_package import CallablePackage

__all__ = [
    "SCHEMA",
    "PhotoResults",
    "Results",
    "read_model_results",
    "read_results",
    "results_schema",
    "write_results",
]


sys.modules[__name__].__class__ = CallablePackage  # `apdm.audit` is also a function of the Python API
