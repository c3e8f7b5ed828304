"""clipray's loop on one of the ranks that torchrun starts, without Ray: CONFIG SHARDS RUN."""

import logging
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from clipray.config import load_config
from clipray.training.corpus import Corpus
from clipray.training.peers import Peers
from clipray.training.rank import Job, run_rank
from clipray.training.run_folder import RunFolder


class Silence:
    """Takes the place of Ray's signals: nobody listens and nothing is asked."""

    def tell(self, lines):
        pass

    def stop_asked(self):
        return False

    def preempted(self):
        return False


def main() -> None:
    config, shards, run = sys.argv[1:]
    logging.basicConfig()
    job = load_config(Job, Path(config))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    peers = Peers.join(torch.device("cpu"))
    run_rank(
        job, Corpus.survey([shards], job.loader.captions), RunFolder(Path(run)), peers, Silence()
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
