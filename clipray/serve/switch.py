"""Going over to a new version of an index while queries are answered.

Every replica of every group opens the new version beside the old one; when all have, the catalog
is replaced in one step, and the old one is let go of. Queries under way finish on the version that
they began with, so no reply mixes two. A version that a group cannot open whole is not gone over
to, and the one before stays open everywhere.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from clipray.errors import DamagedError, MismatchError, UnavailableError, plain
from clipray.index.store import newest, read
from clipray.serve.catalog import Catalog, ServedFolder
from clipray.serve.groups import GroupSpec, require_homes
from clipray.serve.holding import Told
from clipray.serve.meter import Meter

log = logging.getLogger(__name__)

OPEN_S = 600.0  # a large version is verified while the old one is served
RETIRE_S = 10.0
BEGIN_S = 0.5  # between looks for groups that are starting


class Opener(Protocol):
    """Has all replicas of a group open versions and let go of them."""

    async def open(self, folder: ServedFolder, /) -> Sequence[Told]:
        """What each says of a version."""
        ...

    async def retire(self, place: str, version: int, /) -> None:
        """Let go of earlier versions after a while."""
        ...


class Switch:
    """Keeps the catalog of one ingress replica at the newest versions.

    Args:
        catalog: what is served at first.
        groups: what each group holds, and how it is made to open a version.
        meter: is told which versions are served, and of failures.

    Attributes:
        catalog: what is served now.
        failures: why folders are not at their newest version, by slot.
    """

    def __init__(
        self, catalog: Catalog, groups: Sequence[tuple[GroupSpec, Opener]], meter: Meter
    ) -> None:
        self.catalog = catalog
        self._meter = meter
        for folder in catalog.folders:
            meter.version(folder.slot, folder.version)
        self.failures: dict[str, str] = {}
        self._unopened = {folder.slot for folder in catalog.folders}
        self._groups = tuple(groups)
        self._looking = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None  # a look that others may wait for as well

    async def begin(self) -> None:
        """Look until all folders are open; groups may start later than the ingress does."""
        await self.look(again=True)
        while self._unopened:
            await asyncio.sleep(BEGIN_S)
            await self.look(again=True)

    async def watch(self, every_s: float) -> None:
        """Look for new versions for ever."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self, *, again: bool = False) -> None:
        """Go over to the newest version of every folder.

        Args:
            again: open also those that are served, where a shard was lost, a replica is new or
                columns are not known. Who waits for this at the same time shares one look.
        """
        if not again:
            await self._look(again=False)
            return
        if self._next is None:
            self._next = asyncio.ensure_future(self._look(again=True))
        await asyncio.shield(self._next)

    async def _look(self, *, again: bool) -> None:
        async with self._looking:
            if again:
                self._next = None  # who comes now may have seen what comes later
            for folder in self.catalog.folders:
                try:
                    await self._look_at(folder, again=again)
                    self.failures.pop(folder.slot, None)
                except Exception as error:  # noqa: BLE001  the old version is still served
                    self._failed(folder, plain(error))

    async def _look_at(self, folder: ServedFolder, *, again: bool) -> None:
        number = await asyncio.to_thread(newest, folder.root)
        if number <= folder.version and not again:
            return
        if number > folder.version:
            try:
                await self._advance(folder, number)
            except Exception:
                if again:  # a replica that is new may have begun with the newest version alone
                    self._go_over(folder, await self._opened(folder))
                raise
        elif again:
            self._go_over(folder, await self._opened(folder))

    async def _advance(self, folder: ServedFolder, number: int) -> None:
        manifest = await asyncio.to_thread(read, folder.root, number)
        self.catalog.model.require(manifest.model, f"{folder.slot} version {number}: its model")
        if manifest.modality != folder.modality:
            raise MismatchError(f"{folder.slot}: version {number} holds {manifest.modality}s")
        target = ServedFolder.of(folder.name, folder.root, manifest)
        require_homes(target, [spec for spec, _ in self._groups])
        opened = await self._opened(target)
        _require_whole(target, opened)
        self._go_over(target, opened)
        await self._retire(target)

    async def _opened(self, folder: ServedFolder) -> list[Told]:
        groups = [(spec, opener) for spec, opener in self._groups if spec.shards(folder)]
        async with asyncio.timeout(OPEN_S):
            found = await asyncio.gather(*[opener.open(folder) for _, opener in groups])
        for (spec, _), told in zip(groups, found, strict=True):
            if not told:
                raise UnavailableError(f"{spec.name} has no replica now; it is tried again")
        return [told for group in found for told in group]

    async def _retire(self, folder: ServedFolder) -> None:
        """Only now: while a group cannot open a version, all need the one before."""
        try:
            async with asyncio.timeout(RETIRE_S):
                calls = [one.retire(folder.place, folder.version) for _, one in self._groups]
                await asyncio.gather(*calls)
        except Exception as error:  # noqa: BLE001  they take memory until the next version
            log.warning("%s: earlier versions stay open: %r", folder.slot, error)

    def _go_over(self, folder: ServedFolder, opened: Sequence[Told]) -> None:
        columns = sorted({column for told in opened for column in told.columns})
        changed = folder.model_copy(update={"columns": tuple(columns)})
        self.catalog = self.catalog.with_folders([changed])
        self._unopened.discard(folder.slot)
        self._meter.version(folder.slot, folder.version)
        log.info("%s: version %d is served", folder.slot, folder.version)

    def _failed(self, folder: ServedFolder, error: BaseException) -> None:
        told = f"{type(error).__name__}: {error}" if str(error) else repr(error)
        if self.failures.get(folder.slot) != told:
            self._meter.switch_failed(folder.slot)
            level = logging.INFO if isinstance(error, UnavailableError) else logging.ERROR
            log.log(level, "%s: stays at version %d: %s", folder.slot, folder.version, told)
        self.failures[folder.slot] = told


def _require_whole(folder: ServedFolder, opened: Sequence[Told]) -> None:
    lost: Mapping[int, str] = {n: why for told in opened for n, why in told.lost.items()}
    for number, why in sorted(lost.items()):
        raise DamagedError(f"{folder.slot} version {folder.version}: shard {number}: {why}")
