"""The audit: run the same attacks on the base and on the hardened model, and compare what likeness costs the attacker.

A cell is one attack on one model with the photos of one person and one seed. Each cell gives one row of the results.
To follow a row from attack to results.json, read `model_audit`, `cells`, `cell_runner` and `rows`. To follow the
verdict, read `verdict`, which asks `checks` and `doubts`. A new quality figure begins in `judging`.

What is read and checked before any attack:

plan                  everything that determines an audit: models, people, attacks, judges (`AuditPlan`)
people, captions      the people who are attacked, and their photos; the captions that some attacks train on
models                loads the models and checks that they can be compared
suites                named lists of attacks: on whom each attack runs, and whether the verdict requires it
attack_factory        makes attacks from their specs, and says whether they fit a model
face_checks           checks that photos show faces, and that folders share no person; tells which faces are seen
match_thresholds      measures when an encoder says "the same subject", where that is not known

The audit of models, in the order of the run:

model_audit           runs it: `attack_and_judge`
matrix, store         the list of all cells, which several processes can share; finished cells on disk
class_pictures        what the models draw for the class prompt, without an attack
guidance              what the models draw of the people before any attack
cells, cell_runner    one cell; how it is run: attacked, and judged at every measured step
judging, attention    how pictures are judged; maps of where an attacked model attends to the word for the subject
untrained             lets attacks without training run as cells
search, search_space  an attacker's search for the best options
rows                  figures of an attack from its rows
budgets               what each attack reaches with the same number of pictures to train on
checks, doubts        measured values against thresholds; what makes an audit unreliable
verdict               the verdict: `judge_attacks`, then `judge`

Other audits:

one_model             attacks on one model alone, without a verdict: `apdm attack`
protected_photos      reads protected photos and their originals
photo_attack_specs    which attacks run on photos
photo_attacks         the audit of protected photos: `attack_and_judge_photos`
photo_verdict         its verdict
tables                a table of a paper, measured again: `apdm reproduce`

The results:

results, common_results, photo_results, search_results   the content of results.json
results_file, schema  writes and reads it, and the JSON schema
picture_names         what the pictures are called
"""

import sys

from apdm.audit.common_results import SCHEMA
from apdm.audit.model_audit import attack_and_judge
from apdm.audit.photo_results import PhotoResults
from apdm.audit.plan import AuditPlan
from apdm.audit.results import Results
from apdm.audit.results_file import read_model_results, read_results, results_schema, write_results
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
