"""Train or fine-tune a model: `clipray train` as a job.

Here:          python jobs/train.py -c jobs/train.yaml --input SHARDS --output MODEL
On a cluster:  ray job submit --working-dir . -- python jobs/train.py -c jobs/train.yaml …
"""

import sys

from clipray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
