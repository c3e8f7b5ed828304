"""Run by the peers' Python: the options of clip-retrieval's and open_clip's programs, as JSON."""

import contextlib
import inspect
import io
import json
import re

from clip_retrieval import clip_back, clip_filter, clip_index, clip_inference
from open_clip_train.params import parse_args


def main() -> None:
    programs = (clip_back, clip_filter, clip_index, clip_inference)
    names = {name for program in programs for name in inspect.signature(program).parameters}
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        parse_args(["--help"])
    trainer = re.findall(r"--[a-z0-9-]+", told.getvalue())
    options = {"clip-retrieval": [f"--{name}" for name in names], "open_clip": trainer}
    print(json.dumps({section: sorted(found) for section, found in options.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
