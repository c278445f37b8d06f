"""raygan trains and serves face-image GANs on Ray.

Data flows one way: photos, shards, batches, losses, checkpoint, registry, replica, HTTP.
Each stage is one module named by its verb (`prepare`, `train`, `serve`), each job in `jobs/` only
parses a command line and calls it. `raygan.gan` needs torch alone; MLflow is touched in
`raygan.tracking` only.
"""

__version__ = "0.1.0"
