"""What attacks are made of. None of these files is an attack.

attacked_model               the model that is attacked, and which parts of it are copies
timesteps, batches           the pictures of a training step, their noise and timesteps, and the loss on them
batch_prompts, captions      the prompts of these pictures; captions of photos
tokens                       new words for the subject
optimizers                   optimizers by name
first_norms                  a way around a fault of PyTorch
latents                      decoding of latents, and encoding by another VAE
adapter_file, identity_net   files of FaceID and InstantID adapters; InstantID's ControlNet
"""
