"""Groups of options that commands share, or that are large enough for a file.

job                          what `apdm harden` and `apdm perturb` share
attackers                    the simulated attackers of `apdm harden`, and the pool of them
image_layer                  the protection of photos
audit, photo_audit           the audit; which options of an audit of photos go together
presets                      what saves memory, with presets for sizes of graphics cards
subject_kind                 what the subjects are
dataset, hub, trackers       a dataset in place of folders; the Hub; trackers
model_options                the model and its files; networks for faces; threads
"""
