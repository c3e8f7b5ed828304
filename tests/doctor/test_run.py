"""The command, on this machine as it is, and with checks that misbehave."""

import json
import time

import pytest

from clipray.cli import main
from clipray.doctor import index, run, sharing, survey
from clipray.doctor.finding import ok, problem
from clipray.doctor.run import DoctorConfig, DoctorReport, attempted, doctor
from clipray.doctor.sharing import probe_file
from tests.heads import free_ports

QUICK = {"versions": "clipray.doctor.versions"}


@pytest.fixture
def alone(monkeypatch):
    """No cluster, and only the quickest check of this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(run, "LOCAL", QUICK)


def test_all_checks_of_a_machine_end_well_or_with_a_finding(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    report = doctor(DoctorConfig())
    looked_at = {one.check for one in report.findings}
    assert {"versions", "processor", "memory", "/dev/shm", "open files"} < looked_at
    assert {"disk", "GPU", "Faiss", "ports", "cluster"} < looked_at
    assert not [one for one in report.findings if "Error" in one.found]


def test_a_check_that_fails_or_hangs_does_not_stop_the_others():
    def failing():
        yield ok("torch", "imported")
        raise ImportError("libcudart.so.12: cannot open shared object file")

    def hanging():
        yield ok("disk", "one")
        time.sleep(60)

    found = attempted("torch", failing, 5)
    assert [one.level for one in found] == ["ok", "problem"]
    assert "ImportError: libcudart.so.12" in found[1].found
    found = attempted("disk", hanging, 0.1)
    assert [one.level for one in found] == ["ok", "problem"]
    assert found[1].found == "no answer for 0.1 s"


def test_what_cannot_be_imported_is_a_finding(alone, monkeypatch):
    monkeypatch.setattr(run, "LOCAL", {"GPU": "clipray.doctor.missing"} | QUICK)
    first, *others = doctor(DoctorConfig()).findings
    assert "ModuleNotFoundError: No module named 'clipray.doctor.missing'" in first.found
    assert others


def test_only_a_problem_makes_it_exit_with_1(alone, tmp_path, capsys):
    assert main(["doctor", "--path", str(tmp_path)]) == 0
    assert f"ok       shared storage: {tmp_path}: 1 nodes see" in capsys.readouterr().out
    assert main(["doctor", "--path", str(tmp_path / "missing")]) == 1
    said = capsys.readouterr().out
    assert "is no folder here" in said
    assert "   → create it" in said
    assert said.endswith("1 problem, 0 warnings, 1 note\n") or "1 problem" in said


def test_json_has_all_findings(alone, capsys):
    main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {"level", "check", "found", "advice"} == set(told["findings"][0])


def test_the_summary_counts_what_there_is():
    report = DoctorReport(findings=(problem("a", "b", "c"), ok("d", "e")))
    assert report.summary() == (
        "problem  a: b\n           → c\nok       d: e\n1 problem, 0 warnings, 0 notes"
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:{port}", "nothing answers at 127.0.0.1"),
        ("http://127.0.0.1:8265", "is the address of a dashboard"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_at_once(address, words):
    (port,) = free_ports(1)
    (found,) = survey.check(address.format(port=port), ())
    assert found.level == "problem"
    assert words in found.found


def test_an_index_is_opened_and_its_model_looked_for(flat_index, tmp_path):
    opened, model = index.check(str(flat_index))
    assert (opened.level, model.level) == ("ok", "ok")
    assert "version 1, 40 image rows in 2 shards" in opened.found
    (missing,) = index.check(str(tmp_path))
    assert missing.level == "problem"


def test_the_model_of_an_index_may_be_gone(flat_index, model):
    hidden = model.with_name("away")
    model.rename(hidden)
    try:
        _, found = index.check(str(flat_index))
    finally:
        hidden.rename(model)
    assert found.level == "problem"
    assert "is not there" in found.found


@pytest.mark.parametrize("place", ["{folder}", "memory://doctor"])
def test_a_probe_file_is_read_where_it_is_seen_and_then_gone(place, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "LOOKS", 1)
    place = place.format(folder=tmp_path)
    with probe_file(place) as file:
        assert sharing.look(place, file.name, file.content) is None
        assert sharing.look(place, file.name, b"other") == "another file is there"
    assert not list(tmp_path.iterdir())
    assert "no" in sharing.look(place, file.name, file.content)


def test_the_running_cluster_is_surveyed(ray_session, tmp_path):
    found = list(survey.survey([str(tmp_path), str(tmp_path / "missing")]))
    levels = {(one.check, one.level) for one in found}
    assert {("nodes", "ok"), ("versions", "ok"), ("clock", "ok")} <= levels
    storage = [one for one in found if one.check == "shared storage"]
    assert [one.level for one in storage] == ["ok", "problem"]
    assert not list(tmp_path.iterdir())
