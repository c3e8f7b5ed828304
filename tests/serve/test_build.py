"""What is asked of Ray for each deployment, and what is refused before anything is started."""

import pytest
from pydantic import ValidationError

from clipray.config import load_config
from clipray.errors import ConfigError, MismatchError
from clipray.manifest import ModelFolder, ModelIdentity, ModelManifest, write_json
from clipray.serve.app import build
from clipray.serve.args import Scaling, ServeArgs
from clipray.serve.local import ServeConfig
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings

LISTEN = {"port": 1}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Three shards."""
    root = tmp_path_factory.mktemp("built")
    write_embeddings(root / "emb", cut_parts(random_halves(30, 16), 1))
    build_index(root / "index", root / "emb", shards=3)
    return str(root / "index")


def deployments(index, **args):
    """Those of an application, by name."""
    top = build(ServeArgs.model_validate({"index": [index], **args}))._bound_deployment
    _, encoder, groups, _ = top.init_args
    below = [application._bound_deployment for application in (encoder, *groups)]
    return {deployment.name: deployment for deployment in (top, *below)}


def test_nothing_is_scaled_unless_it_is_asked_for(index):
    made = deployments(index, groups=2, replicas=3)
    assert {name: one.num_replicas for name, one in made.items()} == {
        "Search": 1,
        "Encoder": 1,
        "ShardGroup-0": 3,
        "ShardGroup-1": 3,
    }
    for one in made.values():
        assert one._deployment_config.autoscaling_config is None
        assert one._deployment_config.max_surge_percent == 100
        assert not one.ray_actor_options.get("num_gpus")


def test_scaling_is_handed_on_to_ray(index):
    many = {"replicas": 2, "max_replicas": 6, "target": 3, "cpus": 1.5, "per_node": 1}
    more = many | {"max_replicas": 9}
    made = deployments(index, shards=many, encoder=more, replicas=4, gpus=0.25)
    for name, fewest, most in (("ShardGroup-0", 4, 6), ("Encoder", 2, 9)):
        scaling = made[name]._deployment_config.autoscaling_config
        assert (scaling.min_replicas, scaling.max_replicas) == (fewest, most)
        assert scaling.target_ongoing_requests == 3
        assert made[name]._replica_config.max_replicas_per_node == 1
        assert made[name].ray_actor_options["num_cpus"] == 1.5
    assert made["Encoder"].ray_actor_options["num_gpus"] == 0.25
    assert made["Search"]._deployment_config.autoscaling_config is None
    assert made["Search"]._replica_config.max_replicas_per_node is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"indexx": ["a"]}, "indexx\n  Extra inputs are not permitted"),
        ({"line": {"deadline": 1}}, "line.deadline\n  Extra inputs are not permitted"),
        ({"shards": {"replicas": 3, "max_replicas": 2}}, "max_replicas 2 is less than 3"),
        ({"shards": {"max_replicas": 2}, "replicas": 3}, "max_replicas 2 is less than replicas 3"),
        ({"search": {"max_replicas": 2}, "listen": LISTEN}, "Ray does not see the load"),
        ({"pretrained": "openai"}, "give the model as well"),
        ({"shards": {"per_node": 101}}, "less than or equal to 100"),
    ],
)
def test_what_cannot_work_is_refused(index, given, told):
    with pytest.raises(ValidationError, match=told):
        ServeArgs.model_validate({"index": [index], **given})


def test_an_ingress_behind_the_proxies_of_ray_is_scaled(index):
    made = deployments(index, search={"max_replicas": 3})
    assert made["Search"]._deployment_config.autoscaling_config.max_replicas == 3


def test_the_command_takes_a_host_and_a_port_but_no_second_address(index):
    with pytest.raises(ConfigError, match="unknown key 'listen'"):
        load_config(ServeConfig, overrides=["listen.port=9"], options={"index": [index]})


def test_a_model_folder_that_says_it_is_another_is_refused_at_once(index, tmp_path):
    other = ModelIdentity(name="other", dim=16, weights="x", preprocess="p", tokenizer="t")
    write_json(ModelFolder(tmp_path).manifest, ModelManifest(identity=other))
    with pytest.raises(MismatchError, match=r": its model is other \(.+ written with none \("):
        deployments(index, model=str(tmp_path))
    same = other.model_copy(update={"weights": "w"})
    write_json(ModelFolder(tmp_path).manifest, ModelManifest(identity=same))
    assert len(deployments(index, model=str(tmp_path))) == 3


@pytest.mark.parametrize(
    ("scaling", "nodes", "most"),
    [
        ({}, 3, None),
        ({"replicas": 2}, 1, None),  # or the second would wait for a node for ever
        ({"replicas": 2}, 2, 1),
        ({"replicas": 3}, 2, 2),
        ({"replicas": 2, "max_replicas": 6}, 5, 3),
        ({"max_replicas": 6}, 5, None),
        ({"replicas": 4, "per_node": 3}, 5, 3),
        ({"per_node": 1}, 1, None),
    ],
)
def test_no_node_gets_all_replicas_where_there_are_others(scaling, nodes, most):
    assert Scaling(**scaling).spread(nodes) == most


def test_replicas_that_fill_their_nodes_are_replaced_one_after_the_other(index):
    made = deployments(index, replicas=2, shards={"per_node": 1})
    assert made["ShardGroup-0"]._deployment_config.max_surge_percent == 0
    assert made["Encoder"]._deployment_config.max_surge_percent == 100
