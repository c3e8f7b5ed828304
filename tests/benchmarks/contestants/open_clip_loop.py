"""open_clip's own trainer on CPUs: the options are those of `open_clip_train.main`.

Run by the peers' Python under torchrun. Two calls are mended, without which it ends at once: a
module on a CPU takes no `device_ids`, and webdataset must not mark the ends of shards
(open_clip's issue 935).
"""

import sys
from functools import partial

import torch
from open_clip_train import data
from open_clip_train.main import main

Parallel = torch.nn.parallel.DistributedDataParallel


def on_cpu(module, device_ids=None, **given):
    return Parallel(module, **given)


if __name__ == "__main__":
    torch.nn.parallel.DistributedDataParallel = on_cpu
    data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)
    main(sys.argv[1:])
