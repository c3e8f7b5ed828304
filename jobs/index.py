"""Build an index, or change one with append, compact, …: `clipray index` as a job.

Here:          python jobs/index.py build -c jobs/index.yaml --embeddings EMB --index IDX
On a cluster:  ray job submit --working-dir . -- python jobs/index.py build -c jobs/index.yaml …
"""

import sys

from clipray.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
