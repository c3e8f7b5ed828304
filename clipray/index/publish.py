"""`clipray index publish`: a copy of the newest version in a store, to be read from anywhere."""

from pathlib import Path

from pydantic import Field

from clipray import uri
from clipray.config import Config
from clipray.errors import ConfigError
from clipray.index import publishing
from clipray.index.manifest import IndexFolder
from clipray.report import Report


class IndexPublishConfig(Config):
    """Copy what a store lacks of the newest version; what is published stays."""

    index: Path = Field(description="index folder")
    to: str = Field(description="URI to publish at, such as s3://bucket/index")


class PublishReport(Report):
    """What a copy to a store took.

    Attributes:
        to: where the index can be opened now.
        version: that is there.
        sent: files that were sent, without the manifest.
        bytes: of those.
        there: files that were there already.
    """

    index: Path
    to: str
    version: int
    sent: int
    bytes: int
    there: int

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.to}: version {self.version} of {self.index}; {self.sent} files sent "
            f"({self.bytes / 2**20:.1f} MiB), {self.there} were there"
        )


def publish(config: IndexPublishConfig) -> PublishReport:
    """Copy the newest version to a store.

    Raises:
        ConfigError: the target is a folder of this machine.
        InputError: no index, or a store that cannot be opened or written.
        DamagedError: a file that is missing or changed.
        OutputError: the store has another version under this number.
    """
    target = uri.at(config.to)
    if uri.is_local(target):
        raise ConfigError(f"to: expected a URI such as s3://bucket/index, found {config.to}")
    folder = IndexFolder(config.index.resolve())
    done = publishing.publish(folder, target)
    return PublishReport(
        index=folder.root,
        to=config.to,
        version=done.version,
        sent=done.sent,
        bytes=done.bytes,
        there=done.there,
    )
