"""Where results may be written.

A Ray job runs in a copy of the folder that it was submitted with, which Ray deletes in time. What
is written there is lost, and no other node sees it.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray gives it to what `ray job submit` starts

PlaceT = TypeVar("PlaceT", Path, str)


def shipped_folder() -> Path | None:
    """The unpacked copy that this process runs in, if it is part of such a job."""
    job = json.loads(os.environ.get(JOB_VARIABLE) or "{}")
    return Path.cwd() if (job.get("runtime_env") or {}).get("working_dir") else None


def _lasting(place: PlaceT) -> PlaceT:
    shipped = shipped_folder()
    if shipped is None or "://" in str(place):
        return place
    if Path(place).resolve().is_relative_to(shipped.resolve()):
        raise ValueError(
            "lies in the copy of the working dir that Ray unpacked for this job, and will delete; "
            "give an absolute path that all nodes share"
        )
    return place


def _folder(given: Any) -> Any:
    if isinstance(given, str) and "://" in given:  # else a folder called `s3:` would be made
        raise ValueError(f"expected a folder that this machine sees, found the URI {given}")
    return given


OutputPath = Annotated[Path, BeforeValidator(_folder), AfterValidator(_lasting)]
OutputPlace = Annotated[str, AfterValidator(_lasting)]  # a path or a URI
