"""`clipray serve --check`: what is wrong in a Serve YAML is named, and nothing is started."""

import json
from pathlib import Path

import pytest
import ray
import yaml

from clipray.cli import main
from clipray.config import read_yaml
from clipray.errors import ConfigError
from clipray.serve.args import ServeArgs
from clipray.serve.check import CheckConfig, check

FILES = sorted((Path(__file__).parents[2] / "serve_configs").glob("*.yaml"))
PLAIN = """
http_options: {host: 127.0.0.1}
applications:
  - name: clipray
    import_path: clipray.serve.app:build
    args:
      index: [a=/idx]
      groups: 2
"""


def checked(tmp_path, text):
    """What is said of a file: its report, or the problems."""
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    try:
        return check(CheckConfig(check=file))
    except ConfigError as error:
        return str(error)


def with_deployment(**options):
    tree = yaml.safe_load(PLAIN)
    tree["applications"][0]["deployments"] = [options]
    return yaml.safe_dump(tree)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_that_comes_along_is_valid(file):
    before = ray.is_initialized()
    report = check(CheckConfig(check=file))
    tree = read_yaml(file)
    assert all(ServeArgs.model_validate(one["args"]) for one in tree["applications"])
    assert f"serve_configs/{file.name}" in file.read_text()  # the commands that stand at its top
    assert not any("keys" in warning for warning in report.warnings)
    assert ray.is_initialized() == before


def test_a_valid_file_is_summed_up(tmp_path):
    text = PLAIN + "      encoder: {replicas: 1, max_replicas: 4, cpus: 2}\n      gpus: 0.5\n"
    report = checked(tmp_path, text + "      replicas: 3\n")
    (application,) = report.applications
    assert [(one.name, one.fewest, one.most) for one in application.deployments] == [
        ("Search", 1, 1),
        ("Encoder", 1, 4),
        ("ShardGroup-0", 3, 3),
        ("ShardGroup-1", 3, 3),
    ]
    assert "clipray: http://127.0.0.1:8000/" in report.summary()
    assert "asks for 3.4–9.4 CPUs and 0.5–2 GPUs" in report.summary()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("http_options", "http_option", "the file: unknown key 'http_option', did you mean"),
        ("host:", "hots:", "http_options: unknown key 'hots', did you mean 'host'?"),
        ("args:", "arg:", "applications.0: unknown key 'arg', did you mean 'args'?"),
        ("groups: 2", "group: 2", "args: unknown key 'group', did you mean 'groups'?"),
        ("groups: 2", "groups: 0", "args: groups: Input should be greater than or equal to 1"),
        ("groups: 2", "line: {dedline_s: 2}", "'line.dedline_s', did you mean 'deadline_s'?"),
        ("groups: 2", "shards: {replicas: 3, max_replicas: 2}", "max_replicas 2 is less than 3"),
        ("groups: 2", "groups: 2\n      groups: 3", "line 9: 'groups' stands twice"),
        ("groups: 2", "listen: {port: 8000}", "port 8000 is that of http_options"),
        ("app:build", "app:biuld", "import_path: clipray.serve.app:biuld cannot be imported"),
        ("app:build", "apps:build", "No module named 'clipray.serve.apps'"),
        ("app:build", "app:APP_NAME", "clipray.serve.app:APP_NAME is no builder"),
        ("name: clipray", "route_prefix: a", "applications.0.route_prefix: Invalid route_prefix"),
        ("name: clipray", "route_prefix: /a/", "may not end with a trailing '/'"),
        ("name: clipray", "runtime_env: {env_var: {}}", "'env_var', did you mean 'env_vars'?"),
        ("name: clipray", "runtime_env: {env_vars: {A: 1}}", "must be of type Dict[str, str]"),
        ("name: clipray", "runtime_env: {working_dir: .}", "only remote URIs in working_dir"),
        ("name: clipray", "logging_config: {level: INFO}", "unknown key 'level'"),
        ("name: clipray", "runtime_env: {env_vars: {CLIPRAY_READ_KEYS: a}}", "key of 1 characters"),
        ("http_options: {host: 127.0.0.1}", "proxy_location: Nowhere", "'HeadOnly' or 'EveryNode'"),
        ("http_options: {host: 127.0.0.1}", "http_options: 3", "http_options: Input should be"),
        ("applications:", "application:", "'applications' is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, told):
    assert old in PLAIN
    assert told in checked(tmp_path, PLAIN.replace(old, new, 1))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "Encoder", "num_replica": 2}, "'num_replica', did you mean 'num_replicas'?"),
        ({"name": "Encodr"}, "no deployment 'Encodr', did you mean 'Encoder'?"),
        ({"name": "ShardGroup-2"}, "no deployment 'ShardGroup-2'"),
        ({"name": "ShardGroup_0"}, "did you mean 'ShardGroup-0'?"),
        (
            {"name": "Search", "autoscaling_config": {"min_replicas": 3, "max_replicas": 2}},
            "autoscaling_config: max_replicas (2) must be greater than or equal to min_replicas",
        ),
        (
            {"name": "Search", "autoscaling_config": {"target_ongoing": 3}},
            "'target_ongoing', did you mean 'target_ongoing_requests'?",
        ),
        (
            {"name": "Encoder", "autoscaling_config": {"max_replicas": 3}},
            "Ray, which would see no load; scale it with encoder.max_replicas in args",
        ),
        ({"name": "ShardGroup-0", "num_replicas": "auto"}, "scale it with shards.max_replicas"),
        ({"name": "Search", "ray_actor_options": {"num_cpu": 1}}, "did you mean 'num_cpus'?"),
    ],
)
def test_overrides_are_of_deployments_that_the_application_has(tmp_path, options, told):
    assert told in checked(tmp_path, with_deployment(**options))


def test_overrides_that_work_are_counted(tmp_path):
    options = {"num_replicas": 3, "ray_actor_options": {"num_cpus": 2}}
    report = checked(tmp_path, with_deployment(name="ShardGroup-1", **options))
    (one,) = [one for one in report.applications[0].deployments if one.name == "ShardGroup-1"]
    assert (one.fewest, one.most, one.cpus) == (3, 3, 2)
    assert any("fast flags" in warning for warning in report.warnings)
    node = checked(tmp_path, with_deployment(name="ShardGroup-rack-2", num_replicas=1))
    assert node.applications  # shards that stay on a node; only the index tells its name


@pytest.mark.parametrize(
    ("name", "told"),
    [("clipray", 'configs for application "clipray"'), ("other", 'route prefix "/"')],
)
def test_two_applications_must_not_meet_at_one_name_or_prefix(tmp_path, name, told):
    second = PLAIN.partition("applications:\n")[2].replace("name: clipray", f"name: {name}")
    assert told in checked(tmp_path, PLAIN + second)


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        (PLAIN, False),
        (PLAIN.replace("127.0.0.1", "0.0.0.0"), True),
        (PLAIN.replace("http_options", "logging_config").replace("host: 127.0.0.1", ""), True),
        (PLAIN.replace("127.0.0.1", "0.0.0.0") + "      read_keys: /keys\n", False),
        (PLAIN.replace("host: 127.0.0.1", "host: 10.0.0.5"), True),
        ("proxy_location: Disabled\n" + PLAIN.replace("127.0.0.1", "0.0.0.0"), False),
        (PLAIN + "      listen: {host: 10.0.0.5, port: 9}\n", True),
        (
            PLAIN.replace("127.0.0.1", "0.0.0.0")
            + f"    runtime_env: {{env_vars: {{CLIPRAY_READ_KEYS: {'k' * 20}}}}}\n",
            False,
        ),
    ],
)
def test_a_service_that_everybody_can_ask_is_warned_of(tmp_path, text, warned):
    report = checked(tmp_path, text)
    assert any("everybody can search" in warning for warning in report.warnings) == warned


def test_a_folder_that_only_this_directory_has_is_warned_of(tmp_path):
    (warning,) = checked(tmp_path, PLAIN.replace("/idx", "idx")).warnings
    assert "idx is looked up where Ray was started" in warning


def test_an_application_that_comes_along_or_is_not_ours_is_left_to_ray(tmp_path):
    remote = "runtime_env: {working_dir: 'https://host/a.zip'}"
    text = PLAIN.replace("name: clipray", remote).replace("clipray.serve.app", "not_here")
    (application,) = checked(tmp_path, text).applications
    assert (application.name, application.deployments) == ("default", ())


def test_the_command_ends_with_2_and_lists_all_problems(tmp_path, capsys):
    file = tmp_path / "serve.yaml"
    file.write_text(PLAIN.replace("groups", "gruops").replace("host", "hots"))
    assert main(["serve", "--json", f"--check={file}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"clipray: {file}: 2 problems\n")
    assert "did you mean 'host'?" in told
    assert "did you mean 'groups'?" in told
    file.write_text(PLAIN)
    assert main(["serve", "--check", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["applications"][0]["name"] == "clipray"
