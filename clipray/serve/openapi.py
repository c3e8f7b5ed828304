"""The description of the HTTP API.

The routes parse their bodies themselves, which is several times faster than FastAPI's way, so
what they take and give is described here.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from clipray.query import Query, Term

REFERENCE = "#/components/schemas/"

Tree = dict[str, Any]

QUERIES: Tree = {
    "text": {"value": {"text": "a dog in the snow", "k": 5}},
    "image": {"value": {"image": "/9j/4AAQSkZJRg…", "modality": "text"}},
    "more and less": {
        "value": {
            "query": [
                {"text": "a red ring"},
                {"key": "photos/00012", "weight": 0.5},
                {"text": "drawing", "weight": -0.3},
            ],
            "k": 20,
        }
    },
    "filter": {
        "value": {
            "text": "a boat",
            "filter": {"$and": [{"width": {"$gte": 512}}, {"caption": {"$contains": "sea"}}]},
            "threshold": 0.2,
            "columns": ["caption", "width"],
        }
    },
    "several": {"value": [{"text": "a cat"}, {"key": "photos/00012", "k": 3}]},
}
TERMS: Tree = {"text": {"value": {"text": "a red ring"}}}

COVERAGE: Tree = {
    "type": "object",
    "description": "how much of the index was searched",
    "properties": {
        "shards_total": {"type": "integer"},
        "shards_ok": {"type": "integer"},
        "rows_searched": {"type": "integer"},
        "rows_total": {"type": "integer"},
        "missing": {"type": "array", "items": {"type": "integer"}},
    },
}
MATCH: Tree = {
    "type": "object",
    "description": "and the columns that were asked for",
    "properties": {
        "id": {"type": "string", "description": "63 bits, more than a JavaScript number holds"},
        "key": {"type": "string"},
        "score": {"type": "number", "description": "cosine of query and row"},
        "embedding": {"type": "array", "items": {"type": "number"}},
    },
    "additionalProperties": True,
}
REPLY: Tree = {
    "type": "object",
    "properties": {
        "matches": {"type": "array", "items": {"$ref": f"{REFERENCE}Match"}},
        "coverage": {"$ref": f"{REFERENCE}Coverage"},
        "degraded": {"type": "boolean", "description": "a part was not searched"},
        "version": {"type": "integer", "description": "of the index"},
        "took_ms": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
EMBEDDING: Tree = {
    "type": "object",
    "properties": {
        "embedding": {"type": "array", "items": {"type": "number"}},
        "dim": {"type": "integer"},
    },
}
ERROR: Tree = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}


def body(kind: type[BaseModel], examples: Tree, *, many: bool = False) -> Tree:
    """What a route that parses its body itself takes, for `openapi_extra`."""
    one: Tree = {"$ref": REFERENCE + kind.__name__}
    schema = {"oneOf": [one, {"type": "array", "items": one}]} if many else one
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def replies(schema: str | None = None, *, many: bool = False) -> dict[int | str, Tree]:
    """What a route gives, for `responses`."""
    found: dict[int | str, Tree] = {
        "4XX": _content("the request is refused", {"$ref": f"{REFERENCE}Error"}),
        503: _content("too little of the service answers", {"$ref": f"{REFERENCE}Error"}),
    }
    if schema:
        one: Tree = {"$ref": REFERENCE + schema}
        many_too = {"oneOf": [one, {"type": "array", "items": one}]} if many else one
        found[200] = _content("the answer", many_too)
    return found


def described(app: FastAPI) -> Tree:
    """The OpenAPI document of an application."""
    tree: Tree = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        description="Find images by text, text by images and images by images.",
    )
    kinds = [(Query, "validation"), (Term, "validation")]
    _, found = models_json_schema(kinds, ref_template=REFERENCE + "{model}")  # type: ignore[arg-type]
    schemas = tree.setdefault("components", {}).setdefault("schemas", {})
    schemas |= found["$defs"]
    schemas |= {
        "Embedding": EMBEDDING,
        "Reply": REPLY,
        "Match": MATCH,
        "Coverage": COVERAGE,
        "Error": ERROR,
    }
    return tree


def _content(description: str, schema: Tree) -> Tree:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
