"""The parts of `apdm harden`, in the order of the run.

files, inputs                what is read and checked: first what needs no model, then all of it
encoding                     photos and prompts become latents and embeddings, once for the whole run
plan                         what the run says before its long work
engine_options               whether the launched engine supports the options
partners                     the pictures that the model may draw in place of protected photos
training, loop               the parts of Learning to Protect, made from the options; the loop over outer steps
checkpoint, keeper           checkpoints as files; when and where a run writes them
validation, probe            pictures while it trains; a short attack that measures the protection so far
export, final_audit          the model is written; the audit at the end
"""
