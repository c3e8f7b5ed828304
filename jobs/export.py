"""Write a model as ONNX files: `clipray export` as a job.

Here:          python jobs/export.py -c jobs/export.yaml --model MODEL --output MODEL/exported
On a cluster:  ray job submit --working-dir . -- python jobs/export.py -c jobs/export.yaml …
"""

import sys

from clipray.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
