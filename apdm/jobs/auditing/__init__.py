"""What all audits do alike: `apdm audit`, the audit at the end of `apdm harden`, and `apdm attack`.

inputs                       the people, their photos, and the judges
steps                        the models are loaded and attacked, the results and the report are written
picture_sheets               the pictures of an audit on disk
"""
