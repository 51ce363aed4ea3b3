"""What a job says before its long work, and what a dry run reckons.

plan, texts                  the plan of a job, row by row; its sentences
resources, memory            time and disk; memory, counted from the shapes of a model
audit_work                   the attacks and pictures that an audit has before it
"""
