"""Ray Train on a Ray that one command has for itself, with fewer processes.

Each that waits costs memory and half a percent of a core: its main thread looks for signals a
hundred times a second.
"""

from typing import Any

from ray.train.torch import TorchTrainer

UNNEEDED = {
    "DatasetsCallback",  # shares Ray's datasets out among the ranks
    "PlacementGroupCleanerCallback",  # sees to what a lost controller leaves in a shared cluster
}


class AloneTrainer(TorchTrainer):
    """Starts only what a run on one node needs that reads no dataset of Ray.

    Both methods are inner ones of Ray 2.60: where a later one does not call them, nothing is left
    out.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in made if type(callback).__name__ not in UNNEEDED]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if not self.scaling_config.elasticity_enabled:  # type: ignore[attr-defined]
            _ask_nobody(given["scaling_policy"])
        return super()._initialize_and_run_controller(**given)  # type: ignore[misc]


def _ask_nobody(policy: Any) -> None:
    """No node can be added, so no autoscaler is started to be asked for one."""
    policy.after_controller_start = _do_nothing
    policy._maybe_send_resource_request = _do_nothing  # called before every decision


def _do_nothing(*_: object) -> None:
    pass
