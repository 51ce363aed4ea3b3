"""What all audits do alike: `apdm audit`, the audit at the end of `apdm harden`, and `apdm attack`.

inputs                       the people, their photos, and the judges
plan                         the models, what is checked with them, and the plan of all attacks
output                       the output folder, and the finished attacks in it
run                          the models are attacked, the results and the report are written
picture_sheets               the pictures of an audit on disk
"""
