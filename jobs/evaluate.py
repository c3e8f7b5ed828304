"""Measure the recall of an index: `clipray evaluate` as a job.

Here:          python jobs/evaluate.py -c jobs/evaluate.yaml --index IDX
On a cluster:  ray job submit --working-dir . -- python jobs/evaluate.py -c jobs/evaluate.yaml …
"""

import sys

from clipray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
