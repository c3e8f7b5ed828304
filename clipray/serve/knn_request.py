"""What clip-retrieval's clients send, as values.

A field that is null or blank counts as not given: the web front sends `"aesthetic_score": ""`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, Field, ValidationError, model_validator

from clipray.config import Config
from clipray.manifest import Modality
from clipray.query import (
    MAX_ID,
    MAX_TEXT_CHARACTERS,
    MAX_URL_CHARACTERS,
    Finite,
    ImageBytes,
    Term,
)

MAX_IDS = 1_000


def row_id(given: int | str) -> int | None:
    """The id of a row, if it can be one."""
    digits = str(given)
    if not digits.isascii() or not digits.isdecimal() or len(digits) > len(str(MAX_ID)):
        return None
    return int(digits) if int(digits) <= MAX_ID else None


def _require_id(given: int | str) -> int | str:
    if row_id(given) is None:
        raise ValueError(f"expected the id of a row, 0 to {MAX_ID}")
    return given


RowId = Annotated[int | str, AfterValidator(_require_id)]


class _Body(Config):
    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        return {name: value for name, value in fields.items() if value is not None and value != ""}


class KnnRequest(_Body):
    """Body of `POST /knn-service`.

    Of several things to look for, the first of text, image, address and embedding counts.
    """

    text: str | None = Field(None, max_length=MAX_TEXT_CHARACTERS, description="words")
    image: ImageBytes | None = Field(None, description="an image file in base64")
    image_url: str | None = Field(
        None, max_length=MAX_URL_CHARACTERS, description="where an image is; a service may refuse"
    )
    embedding_input: tuple[Finite, ...] | None = Field(None, description="a vector of the model")
    modality: Modality = Field("image", description="what to find: images or texts")
    num_images: int = Field(100, ge=0, description="results with metadata")
    num_result_ids: int | None = Field(
        None, ge=1, description="results in all, the further ones without metadata"
    )
    indice_name: str | None = Field(None, description="name of the index; the first by default")
    use_mclip: bool = Field(False, description="encode text with a multilingual model")
    deduplicate: bool = Field(False, description="leave near-duplicates out")
    use_safety_model: bool = Field(False, description="leave unsafe results out")
    use_violence_detector: bool = Field(False, description="leave violent results out")
    aesthetic_score: int | None = Field(None, ge=0, description="prefer what is rated like this")
    aesthetic_weight: Finite = Field(0.5, description="how much the score counts")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not any(self._inputs().values()):
            raise ValueError("give one of text, image, image_url, embedding_input")
        return self

    @property
    def term(self) -> Term:
        """What to look for."""
        name, value = next((name, value) for name, value in self._inputs().items() if value)
        return Term.model_validate({name: value})

    @property
    def wanted(self) -> int:
        """How many results, those without metadata among them."""
        return self.num_images if self.num_result_ids is None else self.num_result_ids

    def _inputs(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "image": self.image,
            "image_url": self.image_url,
            "embedding": self.embedding_input,
        }


class MetadataRequest(_Body):
    """Body of `POST /metadata`."""

    ids: tuple[RowId, ...] = Field(max_length=MAX_IDS, description="numbers, or strings of them")
    indice_name: str | None = Field(None, description="name of the index; the first by default")


BodyT = TypeVar("BodyT", bound=_Body)


async def read_body(kind: type[BodyT], request: Request) -> BodyT:
    """The body, whatever its content type: clip-retrieval's clients name none, or `text/plain`.

    Raises:
        RequestValidationError: as FastAPI's own.
    """
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        details = error.errors(include_url=False)
        told = [detail | {"loc": ("body", *detail["loc"])} for detail in details]
        raise RequestValidationError(told) from None


def described(kind: type[_Body], example: Any, reply: Any) -> dict[str, Any]:
    """How OpenAPI shows a route that reads its body itself."""
    body = {"schema": kind.model_json_schema(), "example": example}
    return {
        "responses": {200: {"content": {"application/json": {"example": reply}}}},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": body}}},
    }
