"""Signals of a run for tests: they keep what was told, and end the run where they are asked to."""

from dataclasses import dataclass, field


class CutOffError(Exception):
    """A rank that dies."""


@dataclass
class Told:
    """Signals that end a run after a step: in order, or as a death does."""

    stop_after: int | None = None
    die_after: int | None = None
    gone_after: int | None = None
    steps: list[int] = field(default_factory=list)

    @property
    def done(self) -> int:
        return max(self.steps, default=0)

    def tell(self, lines):
        self.steps += [int(line["step"]) for line in lines if "loss" in line]
        if self.die_after is not None and self.done >= self.die_after:
            raise CutOffError

    def stop_asked(self):
        return self.stop_after is not None and self.done >= self.stop_after

    def preempted(self):
        return self.gone_after is not None and self.done >= self.gone_after
