"""A service's groups in this process: the real fan-out and the real shards, without Ray."""

import asyncio

from clipray.index import Index
from clipray.index.store import read
from clipray.serve.catalog import Catalog, ServedFolder
from clipray.serve.fanout import Fanout
from clipray.serve.groups import plan_groups
from clipray.serve.line import Line, LineOptions
from clipray.serve.meter import Meter
from clipray.serve.replicas import ShardGroup
from clipray.serve.switch import Switch

PATIENT = LineOptions()
QUICK = LineOptions(deadline_s=0.8, patience_s=0.05)


class Group:
    """Replicas of one group; those that are `down` lose their calls, as dying processes do."""

    def __init__(self, spec, folders, replicas) -> None:
        self.make = lambda: ShardGroup(spec, folders, 1, verify=True)
        self.replicas = [self.make() for _ in range(replicas)]
        self.down = set()
        self.known = set()  # to be down, as Serve's router learns it from a lost call
        self.calls = 0

    async def send(self, method, *arguments):
        self.calls += 1
        self.known &= self.down
        there = [at for at in range(len(self.replicas)) if at not in self.known]
        if not there:
            await asyncio.sleep(60)  # as Serve does: it waits for a replica
        at = there[self.calls % len(there)]
        await asyncio.sleep(0)
        if at in self.down:
            self.known.add(at)
            raise ConnectionError("the replica died")
        return await getattr(self.replicas[at], method)(*arguments)

    async def open(self, folder):
        return [await replica.open(folder) for replica in self.replicas]

    async def retire(self, place, version):
        for replica in self.replicas:
            await replica.retire(place, version)


class Groups:
    """All groups over some index folders, by name."""

    def __init__(self, roots, groups=2, replicas=1, options=PATIENT) -> None:
        found = {name: read(root) for name, root in roots.items()}
        folders = [ServedFolder.of(name, roots[name], found[name]) for name in roots]
        first = found[next(iter(roots))]
        self.catalog = Catalog(model=first.model, source=first.source, folders=tuple(folders))
        self.specs = plan_groups(folders, groups)
        self.groups = [Group(spec, folders, replicas) for spec in self.specs]
        self.batches = []
        self.lines = [
            Line(spec.name, group.send, options)
            for spec, group in zip(self.specs, self.groups, strict=True)
        ]
        self.fanout = Fanout(self.lines, self.specs, self.batches.append)

    def switch(self):
        return Switch(self.catalog, list(zip(self.specs, self.groups, strict=True)), Meter())


def truths(root, queries, k):
    """What an exact search of the newest version finds in process."""
    return Index.open(root).search(queries, k, columns=("caption",), exact=True)
