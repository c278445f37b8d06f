"""Training on Ray Train: `train` in the driver, `worker` on every rank, and what goes between them.

The GAN's own mathematics is in `raygan.gan`; `schedule` says when what is due, `quality` judges checkpoints beside the
training, `news` is what workers and judges tell the driver, `plots` draws a run's curves.
"""
