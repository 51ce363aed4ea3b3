"""What determines an audit: everything that is read and checked before any attack.

plan                  all of it together: `AuditPlan`
people, captions      the people who are attacked, and their photos; the captions that some attacks train on
models                loads the models and checks that they can be compared
suites                named lists of attacks: on whom each attack runs, and whether the verdict requires it
attack_factory        makes attacks from their specs, and says whether they fit a model
untrained             lets attacks without training run as cells
search_space          the options that a search for the best attack varies
face_checks           checks that photos show faces, and that folders share no person; tells which faces are seen
match_thresholds      measures when an encoder says "the same subject", where that is not known
protected_photos      reads protected photos and their originals
photo_attack_specs    which attacks run on photos
"""
