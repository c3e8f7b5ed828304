"""Where the time of a command goes, by stage."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by stage, from when it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add({name: time.perf_counter() - began})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what was measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def tell(self, what: str) -> None:
        """Write one line to stderr."""
        total = time.perf_counter() - self._began
        stages = (f"{name} {value:.4f} s" for name, value in self.seconds.items())
        sys.stderr.write(f"benchmark, {what}: {', '.join(stages)}, total {total:.4f} s\n")
