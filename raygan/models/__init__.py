"""The networks and their files. Everything here needs torch, never Ray or MLflow, and takes local paths.

1. `gan`: a generator turns latents, standard normal (N, z_dim), into images, float (N, 3, S, S) in [-1, 1]; a critic
   scores images. `registry` lists the architectures: `dcgan`, `skip` and `residual`, on `layers` that they share and on
   those of `double_backward` and `sync_norm`. `distributed` runs a network on several ranks, `averages` keeps its EMA,
   and `draws` are the random numbers of its images.
2. `latents`: seeds become latents, and latents become images, uint8 (N, 3, S, S).
3. `googlenet` classifies such images; `features` turns them into vectors for metrics.
4. `fuse` and `pooling` make finished networks fast, and `drawing` runs a fast generator so that a seed gives the same
   pixels everywhere. `hardware` says what the machine can do.
5. `weights` reads and writes all files; `export` writes ONNX files.
6. `directions` are those among the latents that change images most. `stages` are the parts of a critic that can freeze,
   and that a growing network gets more of.
"""
