"""The protection of photos, which `apdm perturb` and `apdm harden` run.

input                        photos are found and checked
job                          photos are protected, saved and measured
saved                        the protected photos as files
sources                      what they were made from
"""
