"""Writing of everything that a run ships: the pipeline folder, the single file, the model card, the manifest."""
