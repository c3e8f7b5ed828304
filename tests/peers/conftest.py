"""Folders that the peers read: a whole one, and one with rejected samples and an empty part."""

import tarfile
from pathlib import Path

import pytest

from clipray.embed import EmbedConfig, embed
from clipray.embeddings import EmbeddingsFolder
from tests.drawing import Drawing, drawings, write_sample

BROKEN = b"no image"


@pytest.fixture(scope="session")
def thinned(workspace: Path, model: Path, ray_session: None) -> Path:
    """Four shards: whole, nothing left, some rejected, whole."""
    root = workspace / "thinned"
    root.mkdir()
    drawn = drawings(32)
    for shard, kept in enumerate((range(8), (), (0, 2, 3, 7), range(8))):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for place, drawing in enumerate(drawn[8 * shard : 8 * shard + 8]):
                sample = drawing if place in kept else Drawing(drawing.caption, BROKEN)
                write_sample(tar, f"{shard:05d}{place:04d}", sample)
    folder = workspace / "thinned_embeddings"
    report = embed(
        EmbedConfig(input=(str(root),), output=folder, model=str(model), modality="both")
    )
    assert report.rows == 20
    assert [part.rows for part in EmbeddingsFolder(folder).parts().values()] == [8, 0, 4, 8]
    return folder


@pytest.fixture(params=["embeddings", "thinned"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two."""
    return request.getfixturevalue(request.param)
