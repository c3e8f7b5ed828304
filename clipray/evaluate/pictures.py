"""Small pictures of samples, read from where they lie, to be shown in a page."""

import base64
from collections.abc import Iterable, Mapping

from clipray import images
from clipray.errors import ImageError
from clipray.samples import Location

SIDE = 160


def thumbnails(
    places: Mapping[str, Location | None], wanted: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Data URIs of pictures by key, and why the others have none.

    Args:
        places: where pictures lie, by key.
        wanted: keys of those to read.
    """
    shown: dict[str, str] = {}
    missing: list[str] = []
    for key in dict.fromkeys(wanted):
        place = places.get(key)
        if place is None:
            missing.append(f"{key}: where its picture lies is not known")
            continue
        try:
            small = images.thumbnail(place.read(images.MAX_BYTES + 1), SIDE)
        except (OSError, ImageError) as error:
            missing.append(f"{key}: {error}")
            continue
        shown[key] = f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
    return shown, missing
