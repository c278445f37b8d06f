"""Both models under LitServe, in a module of its own: LitServe pickles the class by name for its workers."""

import json
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
from fastapi import Request, Response

from raygan.benchmarks.serve_models import Pair, picture
from raygan.serve.messages import Pixels

Answer = tuple[Pixels, Any]


class Api(litserve.LitAPI):
    """Turns n and seed in JSON into a PNG grid, several requests in a batch."""

    def __init__(self, folder: str, **options: Any):
        super().__init__(**options)
        self.folder = folder

    def setup(self, device: str) -> None:
        self.pair = Pair(Path(self.folder), fast=True)

    def decode_request(self, request: Request) -> torch.Tensor:
        values: Any = request  # LitServe reads the annotation and passes the JSON body
        return self.pair.latents(int(values["n"]), int(values["seed"]))

    def batch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return inputs

    def predict(self, inputs: list[torch.Tensor]) -> list[Answer]:
        images, probabilities = self.pair.answer(torch.cat(inputs))
        ends = np.cumsum([len(latents) for latents in inputs])[:-1]
        return list(zip(np.split(images, ends), np.split(probabilities, ends), strict=True))

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> Response:
        headers = {"X-Probabilities": json.dumps(output[1].round(4).tolist())}
        return Response(picture(output[0]), media_type="image/png", headers=headers)
