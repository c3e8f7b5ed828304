"""What one check has found, and what to do about it."""

from typing import Literal

from clipray.config import Config

Level = Literal["ok", "note", "warning", "problem"]


class Finding(Config):
    """One line of the report.

    Attributes:
        level: a problem keeps something from working; a warning will, or costs much; a note may
            be of use.
        check: what was looked at.
        found: one line.
        advice: what to do; empty where nothing is.
    """

    level: Level
    check: str
    found: str
    advice: str = ""

    def on(self, node: str) -> "Finding":
        """The same, found on a node of the cluster."""
        return self.model_copy(update={"found": f"node '{node}': {self.found}"})


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(level="ok", check=check, found=found)


def note(check: str, found: str, advice: str = "") -> Finding:
    """Something to know."""
    return Finding(level="note", check=check, found=found, advice=advice)


def warning(check: str, found: str, advice: str) -> Finding:
    """Something that will cost time, or fail later."""
    return Finding(level="warning", check=check, found=found, advice=advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """Something that does not work."""
    return Finding(level="problem", check=check, found=found, advice=advice)
