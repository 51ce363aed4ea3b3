"""The jobs: what each command does from start to end.

To follow a command, read its own file first: one function does everything in order, and calls the parts. Where several
processes work together, `apdm.distributed.processes` says which of them does what.

Files of commands:

attack, audit, compare, demo, harden, init, perturb, push, report, reproduce, verify   the command of this name
photo_audit                  `apdm audit` without a hardened model: of photos alone
env_machine, env_models      `apdm env`: what this machine is ready for; with --models, what a model can be used for
dry_run                      `--dry_run` of harden, perturb, audit and attack

Parts of `apdm harden`, in the order of the run:

harden_files, harden_inputs  the input: first what can be read without the models, then all of it, checked and encoded
engine_options               whether the launched engine supports the options
partners                     the pictures that the model may draw in place of protected photos
training, hardening_loop     the parts of Learning to Protect, made from the options; the loop over outer steps
checkpoint, keeper           checkpoints as files; when and where a run writes them
validation, probe            pictures while it trains; a short attack that measures the protection so far
harden_export, final_audit   the model is written; the audit at the end

Parts of `apdm perturb`, which `apdm harden` runs too:

photo_input, photo_job       photos are found and checked; protected, saved and measured

Parts of audits: of `apdm audit`, of the one at the end of `apdm harden`, and of `apdm attack`:

audit_inputs, audit_steps    people and judges; what the audits do alike
picture_sheets               the pictures of an audit on disk

Parts of `apdm reproduce`:

recipes, recipe_models       a table as data; the models that it names
recipe_checks, recipe_list   what is checked before any work; all tables
reproduce_plan               `--plan`: what a table will take
reproduce_subjects, reproduce_steps, reproduce_figures   whose photos; what is run for a row; what is measured on files

Parts of several jobs:

first_checks                 mistakes that are found before torch is imported
prepare                      threads, warnings about prompts, datasets, and the output folder
base_model, class_pictures   the models and the class pictures of a job
face_networks                which networks look at faces
plan, plan_texts             what a job says before its long work, row by row
resources, memory_count, audit_work   what a dry run says about memory, time and disk
stages                       the names of a job's stages, and the report that grows with them
tracked                      what a tracker gets
results, summary             what a job returns; what it tells at its end
process_state                what the Python API restores after a job
"""

# Every command and every function of the Python API imports `apdm.jobs` before the libraries.
import apdm.core.quiet  # noqa: F401
