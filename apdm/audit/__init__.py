"""The audit: run the same attacks on the base and on the hardened model, and compare what likeness costs the attacker.

A cell is one attack on one model with the photos of one person and one seed. Each cell gives one row of the results.
To follow an audit from start to end, read `model_audit.attack_and_judge`, then `cells`, `cell_runner`, `rows`,
`checks`, `doubts` and `verdict`.

plan            everything that determines an audit: models, people, attacks, judges (`AuditPlan`)
people          the people who are attacked, and their photos
captions        the captions that some attacks train on, read before any work
models          loads the models and checks that they can be compared
attack_factory  makes attacks from their specs, and says whether they fit a model
suites          named lists of attacks: on whom each attack runs, and whether the verdict requires it
faces_seen, same_faces   checks before any attack: photos show faces, and folders share no person
match_thresholds   measures when an encoder says "the same subject", where that is not known
model_audit     runs a whole audit of models: `attack_and_judge`
one_model       runs attacks on one model alone, without a verdict: `apdm attack`
matrix          the list of all cells, which several processes can share
cells, cell_runner                one cell; how it is run: attacked, and judged at every measured step
judging         judges the pictures of a person: likeness to whom, and quality figures
untrained       lets attacks without training run as cells
picture_names   what the pictures of an audit are called
attention       maps of where an attacked model attends to the word for the subject
class_pictures  pictures that the models draw for the class prompt, without an attack
guidance        what the models draw of the people before any attack
store           keeps finished cells on disk
search, search_space              an attacker's search for the best options
budgets         what each attack reaches with the same number of pictures to train on
tables          a table of a paper, measured again: `apdm reproduce`
protected_photos, photo_attack_specs, photo_attacks, photo_verdict   the audit of protected photos
results, common_results, photo_results, search_results            the content of results.json
results_file, schema              writes and reads it, and the JSON schema
rows, checks, doubts, verdict     pure functions: figures of rows, checks of figures, reasons for doubt, the verdict
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
