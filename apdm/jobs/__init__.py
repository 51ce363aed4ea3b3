"""The jobs: what each command does from start to end.

To follow a command, read the file of its name first: one function does everything in order, and calls the parts. Where
several processes work together, `apdm.distributed.processes` says which of them does what.

Files of commands:

attack, audit, compare, demo, harden, init, perturb, push, report, reproduce, verify   the command of this name
photo_audit                  `apdm audit` without a hardened model: of photos alone
env_machine, env_models      `apdm env`: what this machine is ready for; with --models, what a model can be used for
dry_run                      `--dry_run` of harden, perturb, audit and attack

Packages of parts, each with a map of its own:

hardening                    the parts of `apdm harden`
photos                       the protection of photos: of `apdm perturb`, and of `apdm harden`, which runs it too
auditing                     what all audits do alike
reproducing                  the parts of `apdm reproduce`
planning                     what a job says before its long work
common                       what several jobs use
"""

# Every command and every function of the Python API imports `apdm.jobs` before the libraries.
import apdm.core.quiet  # noqa: F401
