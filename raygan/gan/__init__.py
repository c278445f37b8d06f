"""The GAN itself, in torch and nothing else: no Ray, no MLflow, no files but checkpoints.

The mental model:

1. `networks` builds a generator (z -> image) and a critic (image -> score) from a `NetworkSettings`; what a
   gradient penalty differentiates twice is in `twice`.
2. `objectives` turns the critic's scores of real and generated images into per-image losses.
3. `augment` deforms reals and fakes alike before the critic sees them.
4. `step.GanStep` owns networks, EMA and optimisers, and performs one critic or generator step on one
   rank's part of a global batch; it works alone or inside a `torch.distributed` process group.
5. `checkpoint` writes and reads all of that as safetensors and JSON.

Images are float tensors of shape (N, 3, S, S) in [-1, 1]; latents are (N, z_dim) standard normal.
"""
