"""How the training runs: in one process or in several, and with float32 master weights.

engines, deepspeed           the engines, which take the training steps in one process or in several
launch                       makes the engine that the launcher's options ask for
master_weights               theta, the protected weights, with the sum G and the outer AdamW
working_weights              theta', the weights that simulated attackers train
lora                         simulated attackers that train a LoRA
reference                    phi in bfloat16
optimizers, schedule         the attacker's optimizers; the schedules of theta's learning rate
loss_scale                   the loss scale of float16
graphs, graph_recording      CUDA graphs of passes: when they are replayed; how they are recorded
recompute                    gradient checkpointing that CUDA graphs can record
processes, trackers          what the processes of a run exchange; TensorBoard and Weights & Biases
"""

import apdm.core.quiet  # noqa: F401 (before diffusers and transformers are imported)
