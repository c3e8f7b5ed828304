"""The file with the paths that a test chose, run in this process."""

import json
from pathlib import Path

from clipray.config import load_config
from clipray.paddle import predict as command
from clipray.paddle.inference import PredictConfig

FILE = Path(__file__).with_name("inference_clip.yaml")


def overrides(settings, mode, **changes):
    chosen = settings | {"Global.mode": mode} | changes
    return [f"{key}={_yaml(value)}" for key, value in chosen.items()]


def predict(settings, mode, **changes):
    """What the command gives back."""
    config = load_config(PredictConfig, FILE, overrides(settings, mode, **changes))
    return command.predict(config)


def _yaml(value):
    return json.dumps(str(value) if isinstance(value, Path) else value)
