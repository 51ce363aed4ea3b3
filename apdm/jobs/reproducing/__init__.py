"""The parts of `apdm reproduce`, which measures a published table again.

recipes, models              a table as data; the models that it names
checks, listing              what is checked before any work; the list of all tables
plan                         `--plan`: what a table will take
subjects, steps, figures     whose photos; what is run for a row; what is measured on files
"""
