"""Do all in a row, and go on where it stopped: `clipray pipeline` as a job.

Here:          python jobs/pipeline.py -c jobs/pipeline.yaml --input SHARDS --work FOLDER
On a cluster:  ray job submit --working-dir . -- python jobs/pipeline.py -c jobs/pipeline.yaml …
"""

import sys

from clipray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]]))
