"""The API's schemas: pydantic models of requests and answers.

Class names, field names and ranges are part of the OpenAPI description, and thus of the stable API.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from raygan.serve.confident import MAX_IMAGES
from raygan.serve.encode import Animation, Format

#: Seeds are below this: every JSON reader keeps such integers exact, with room for an image's index in the answer.
SEED_LIMIT = 2**52

#: Maximum number of directions to move along.
MAX_MOVES = 8

#: Maximum number of images in a stream.
MAX_STREAMED = 10_000


def _digits(value: Any) -> Any:
    """Accept only plain digits: pydantic would take true for 1 and 1_000 for 1000."""
    if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value)):
        raise PydanticCustomError("int_parsing", "Input should be a whole number in digits")
    return value


def _separated(value: Any) -> Any:
    """Split "1,5,9", which in a URL arrives as a list with one text."""
    given = [value] if isinstance(value, str) else value
    if isinstance(given, list) and all(isinstance(each, str) for each in given):
        return [part for each in given for part in each.split(",")]
    return given


Whole = Annotated[int, BeforeValidator(_digits)]
Seed = Annotated[int, BeforeValidator(_digits), Field(ge=0, lt=SEED_LIMIT)]
Move = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
Moves = Annotated[list[Move], BeforeValidator(_separated), Field(max_length=MAX_MOVES)]
Seeds = Annotated[list[Seed], BeforeValidator(_separated), Field(min_length=1, max_length=MAX_IMAGES)]


class LabelQuery(BaseModel):
    """What every request for images says."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field(min_length=1, max_length=200, description="which generator", examples=["cat"])
    version: str | None = Field(
        None,
        pattern="^[1-9][0-9]{0,8}$",
        coerce_numbers_to_str=True,
        description="version of the generator's registered model; the champion by default",
        examples=["3"],
    )
    truncation: float = Field(1.0, gt=0, le=1, description="lower is more typical and less varied", examples=[0.7])
    moves: Moves = Field(
        [],
        description="how far to move latents along the directions in which the generator's images change most (SeFa)",
        examples=[[3, 0, -1.5]],
    )


class SampleQuery(LabelQuery):
    """A request for samples."""

    n: Whole = Field(16, ge=1, le=MAX_IMAGES, description="number of images", examples=[9])
    seed: Whole | None = Field(
        None,
        ge=0,
        lt=SEED_LIMIT,
        description="of the first image, the next has seed + 1; random by default",
        examples=[7],
    )
    seeds: Seeds | None = Field(
        None, description="one per image, instead of n and seed; not with min_confidence", examples=[[1, 5, 9]]
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="only images to which the classifier gives at least this probability of the label",
        examples=[0.9],
    )
    format: Format | None = Field(
        None,
        description="grid is one PNG of all images, webp and jpeg are grids too; by default, Accept decides",
        examples=["json"],
    )

    @model_validator(mode="after")
    def _seeds_stand_alone(self) -> SampleQuery:
        others = "n" in self.model_fields_set or self.seed is not None or self.min_confidence is not None
        if self.seeds is not None and others:
            raise PydanticCustomError("seeds", "seeds can't be combined with n, seed or min_confidence")
        return self


class StreamQuery(LabelQuery):
    """A request for a stream of samples."""

    n: Whole = Field(1000, ge=1, le=MAX_STREAMED, description="number of images", examples=[100])
    seed: Whole | None = Field(
        None,
        ge=0,
        lt=SEED_LIMIT,
        description="of the first image, the next has seed + 1; random by default",
        examples=[7],
    )


class WalkQuery(LabelQuery):
    """A request for an animation between two seeds."""

    seed: Whole = Field(0, ge=0, lt=SEED_LIMIT, description="of the first frame", examples=[7])
    to: Whole | None = Field(
        None, ge=0, lt=SEED_LIMIT, description="seed of the last frame; seed + 1 by default", examples=[12]
    )
    frames: Whole = Field(24, ge=2, le=MAX_IMAGES, description="number of frames, both ends included", examples=[32])
    fps: Whole = Field(12, ge=1, le=50, description="frames per second", examples=[16])
    bounce: bool = Field(False, description="play backward before repeating", examples=[True])
    format: Animation | None = Field(
        None, description="of the animation; by default, Accept decides", examples=["webp"]
    )


class ModelInfo(BaseModel):
    """The version of a registered model that answers."""

    name: str
    version: str
    image_size: int
    directions: int = Field(0, description="how many numbers a generator takes as moves")


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
