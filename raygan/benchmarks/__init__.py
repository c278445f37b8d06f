"""Claims of speed, each measured beside its peers in one run. README.md has the results.

1. `registry` names the benchmarks of `jobs/benchmark.py`, and `settings` declares their flags.
2. One module measures one claim: `prepare`, `train_step`, `train`, `quality`, `scale`, `tune`, `serve`. `gpu` measures
   training on a GPU, with `gpu_timeline` and `gpu_training`; it needs torch alone. `gpu_report` plans that and makes
   tables.
3. What they compare with: `textbook` (WGAN-GP as people write it), `serve_peers` (other servers with `serve_models`).
   `candidates` runs and counts steps of presets and the textbook.
4. What they measure with: `processes` (fresh ones, and Ray's), `servers`, `clients` (HTTP), `results` (machine, file).
5. `faults` breaks things instead: what is lost, and how long it takes.
"""
