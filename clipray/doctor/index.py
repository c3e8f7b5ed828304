"""Whether an index can be opened, and where its model comes from."""

from collections.abc import Iterator
from pathlib import Path

from clipray.doctor.finding import Finding, note, ok, problem
from clipray.errors import ClipRayError
from clipray.exported import stated_identity
from clipray.index.manifest import IndexManifest
from clipray.index.store import read


def check(given: str) -> Iterator[Finding]:
    """Read the newest manifest of an index and what its model's folder says."""
    try:
        manifest = read(given)
    except ClipRayError as error:
        yield problem("index", str(error), "clipray index info and verify say more")
        return
    rows = f"{manifest.rows} {manifest.modality} rows"
    yield ok(
        "index", f"{given}: version {manifest.version}, {rows} in {len(manifest.shards)} shards"
    )
    yield _model(given, manifest)


def _model(given: str, manifest: IndexManifest) -> Finding:
    name = manifest.source.name
    advice = f"give search and serve --model, of identity {manifest.model}"
    try:
        if stated := stated_identity(manifest.source):
            manifest.model.require(stated, "it")
    except ClipRayError as error:
        return problem("index", f"{given}: its model {name}: {error}", advice)
    if stated is None and Path(name).is_absolute() and not Path(name).exists():
        return problem("index", f"{given}: its model {name} is not there", advice)
    if stated is None:
        found = f"{given}: its model is open_clip's {name} {manifest.source.pretrained or ''}"
        return note("index", found.rstrip(), "weights are fetched at its first use on every node")
    return ok("index", f"{given}: its model {name} is the one it was built with")
