"""The options of others that jobs/coming_from.md names are those of their programs."""

import json
import re
from pathlib import Path

import pytest

from tests.peers.environment import command, run
from tests.test_coming_from import sections

pytestmark = pytest.mark.soak

OPTIONS = Path(__file__).with_name("options.py")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    told = run(command("python", OPTIONS), tmp_path_factory.mktemp("options"))
    return json.loads(told.splitlines()[-1])


@pytest.mark.parametrize("section", ["clip-retrieval", "open_clip"])
def test_every_option_of_theirs_exists(section, known):
    cells = re.findall(r"^\| (.*) \| [^|]+ \|$", sections()[section], re.MULTILINE)
    theirs = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    named = {
        option
        for span in theirs
        if not span.startswith("torchrun")
        for option in re.findall(r"--[a-z0-9_-]+", span)
    }
    assert len(named) > 20
    assert named <= set(known[section])
