"""Code that MLflow copies into a registered model and runs for outsiders: `mlflow.pyfunc.load_model`, `models serve`.

Each file is one model "from code": it may import MLflow, the packages among the model's requirements, and
`raygan.models`, which travels along. raygan itself never runs these files from a registry.
"""
