"""Everything that a run ships: the pipeline folder, the single file, the model card and the manifest."""
