"""The API's schemas: pydantic models of what is asked and what is answered.

Class names, field names and ranges are part of the OpenAPI description, and thus of the stable API.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from raygan.serve.confident import MAX_IMAGES
from raygan.serve.encode import Animation, Format

#: Seeds are below this: every JSON reader keeps such integers exact, with room for an image's index in the answer.
SEED_LIMIT = 2**52


def _digits(value: Any) -> Any:
    """Accept only plain digits: pydantic would take true for 1 and 1_000 for 1000."""
    if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value)):
        raise PydanticCustomError("int_parsing", "Input should be a whole number in digits")
    return value


Whole = Annotated[int, BeforeValidator(_digits)]


class SampleQuery(BaseModel):
    """A request for samples."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field(min_length=1, max_length=100, description="which generator, such as cat")
    n: Whole = Field(16, ge=1, le=MAX_IMAGES, description="number of images")
    seed: Whole | None = Field(
        None, ge=0, lt=SEED_LIMIT, description="of the first image, the next has seed + 1; random by default"
    )
    truncation: float = Field(1.0, gt=0, le=1, description="lower is more typical and less varied")
    min_confidence: float | None = Field(
        None, ge=0, le=1, description="only images to which the classifier gives at least this probability of the label"
    )
    format: Format = Field("grid", description="grid is one PNG of all images; webp and jpeg are grids too")


class WalkQuery(BaseModel):
    """A request for an animation between two seeds."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field(min_length=1, max_length=100, description="which generator, such as cat")
    seed: Whole = Field(0, ge=0, lt=SEED_LIMIT, description="of the first frame")
    to: Whole | None = Field(None, ge=0, lt=SEED_LIMIT, description="seed of the last frame; seed + 1 by default")
    frames: Whole = Field(24, ge=2, le=MAX_IMAGES, description="number of frames, both ends included")
    fps: Whole = Field(12, ge=1, le=50, description="frames per second")
    truncation: float = Field(1.0, gt=0, le=1, description="lower is more typical and less varied")
    bounce: bool = Field(False, description="play backward before repeating")
    format: Animation = Field("webp", description="of the animation")


class ModelInfo(BaseModel):
    """The version of a registered model that answers."""

    name: str
    version: str
    image_size: int


class Models(BaseModel):
    """What is served: a generator per label, and the classifier if there is one."""

    generators: dict[str, ModelInfo]
    classifier: ModelInfo | None
    classifier_labels: list[str]


class Readiness(BaseModel):
    """The service is ready. not_served: champions that failed to load, for clients with the token."""

    status: str
    not_served: list[str]


class Verdict(BaseModel):
    """One image's probability of each label."""

    probabilities: dict[str, float]


class Classified(BaseModel):
    """The uploaded images' probabilities, in the order of upload."""

    classifier: ModelInfo
    images: list[Verdict]


class NamedVersion(BaseModel):
    """A version of a registered model."""

    name: str
    version: str


class SampleDocument(BaseModel):
    """One image of a JSON answer. probabilities: null if no classifier is registered. png: base64."""

    seed: int
    probabilities: dict[str, float] | None
    png: str


class SamplesDocument(BaseModel):
    """A JSON answer."""

    label: str
    model: NamedVersion
    classifier: NamedVersion | None
    drawn: int
    accepted: int
    images: list[SampleDocument]


class ProblemDocument(BaseModel):
    """An error as in RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    request_id: str | None = None
