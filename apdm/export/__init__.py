"""What a run ships: pipeline folder, single file, model card, manifest."""
