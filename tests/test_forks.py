"""Processes come ready-made: what their parent has imported is not imported again by each."""

import time

import ray

from clipray import forks


def tell(queue):
    queue.put(time.process_time())


def cpu_of_a_process():
    context = forks.server("clipray.prepare")
    queue = context.Queue()
    for _ in range(2):  # the first may find the server still busy
        context.Process(target=tell, args=(queue,)).start()
        spent = queue.get(timeout=60)
    return spent


def test_a_process_of_a_ray_worker_does_not_import_ray_again(ray_session):
    assert ray.get(ray.remote(cpu_of_a_process).remote(), timeout=120) < 0.2  # it was 0.5
