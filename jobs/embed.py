"""Embed a collection: `clipray embed` as a job.

Here:          python jobs/embed.py -c jobs/embed.yaml --input SHARDS --output EMB
On a cluster:  ray job submit --working-dir . -- python jobs/embed.py -c jobs/embed.yaml …
"""

import sys

from clipray.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
