"""What runs the training: one process or many, and the float32 master weights."""
