"""One configuration from a file, overrides and options; mistakes are named."""

from itertools import pairwise

import pytest
import yaml
from pydantic import Field

from clipray.config import Config, load_config, read_yaml, to_yaml
from clipray.errors import ConfigError


class Inner(Config):
    rate: float = Field(0.1, gt=0)
    names: tuple[str, ...] = ()


class Outer(Config):
    steps: int = 1
    title: str = ""
    inner: Inner = Inner()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("steps: 2\ninner:\n  rate: 0.5\n", encoding="utf-8")
    return path


def test_later_sources_win(file):
    config = load_config(Outer, file, ["inner.rate=0.7", "steps=3"], {"steps": 4})
    assert config == Outer(steps=4, inner=Inner(rate=0.7))


def test_overrides_are_yaml_and_make_their_sections():
    config = load_config(Outer, None, ["inner.names=[a, b]", "title=a=b: c"[:9]])
    assert config == Outer(title="a=b", inner=Inner(names=("a", "b")))


def test_written_yaml_reads_back(tmp_path):
    config = Outer(title="ключ: - #", inner=Inner(names=("yes", "1", "é\n")))
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(Outer, path) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stesp=1", "unknown key 'stesp', did you mean 'steps'"),
        ("inner.rat=1", "unknown key 'inner.rat', did you mean 'rate'"),
        ("inner.rate=-1", r"inner\.rate: .*greater than 0 \(found -1\)"),
        ("steps=many", r"steps: .*integer.* \(found 'many'\)"),
        ("steps.more=1", "section|valid integer"),
        ("steps", "expected section.key=value"),
        ("=1", "expected section.key=value"),
        ("steps=[1", "not valid YAML"),
        ("title=2024-99-99", "not valid YAML"),
        ("steps=0x_", "not valid YAML"),
        ("title=" + "[" * 5000, "not valid YAML"),
        ("title=!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(override, told):
    with pytest.raises(ConfigError, match=told):
        load_config(Outer, None, [override])


def test_a_value_is_no_section(file):
    with pytest.raises(ConfigError, match="steps is a value, not a section"):
        load_config(Outer, file, ["steps.more=1"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"- 1\n- 2\n", "expected a mapping .* found list"),
        (b"", "found NoneType"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"steps: [", "not valid YAML"),
        (b"#" * ((1 << 20) + 1), "larger than"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, told):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(Outer, tmp_path / "none.yaml")


def test_aliases_that_stand_for_terabytes_are_told_briefly(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefghi")]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines) + "\nsteps: *i\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, path)
    assert len(str(caught.value)) < 2000


def test_a_missing_key_is_named():
    class Needs(Config):
        path: str

    with pytest.raises(ConfigError, match="'path' is missing"):
        load_config(Needs)


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Outer().steps = 2
    assert yaml.safe_load(to_yaml(Outer())) == {
        "steps": 1,
        "title": "",
        "inner": {"rate": 0.1, "names": []},
    }


class Step(Config):
    """An entry of a list."""

    height: int = 1


class Ladder(Config):
    """A configuration with lists."""

    steps: tuple[Step, ...] = ()
    top: Step | None = None


def test_an_override_reaches_into_a_list(tmp_path):
    file = tmp_path / "ladder.yaml"
    file.write_text("steps: [{height: 2}, {height: 3}]\ntop:\n")
    found = load_config(Ladder, file, ["steps.1.height=5", "top.height=6"])
    assert [step.height for step in found.steps] == [2, 5]
    assert found.top == Step(height=6)
    assert load_config(Ladder, file, ["steps.0={height: 4}"]).steps[0] == Step(height=4)
    for place in ("2", "-1", "first"):
        with pytest.raises(ConfigError, match=f"found '{place}', expected a place in a list of 2"):
            load_config(Ladder, file, [f"steps.{place}.height=5"])


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("hight", ", did you mean 'steps.height'?"),
        ("top.step", ", did you mean 'steps'?"),
        ("heat", ""),
    ],
)
def test_a_key_of_another_section_is_told_where_it_is_near(key, told):
    with pytest.raises(ConfigError) as caught:
        load_config(Ladder, None, [f"{key}=5"])
    assert str(caught.value) == f"options: unknown key '{key}'{told}"


@pytest.mark.parametrize("section", ["steps.0", "top"])
def test_a_key_in_a_list_has_near_keys_too(tmp_path, section):
    file = tmp_path / "ladder.yaml"
    file.write_text("steps: [{}]\n")
    with pytest.raises(ConfigError, match=rf"{section}\.heigth', did you mean 'height'"):
        load_config(Ladder, file, [f"{section}.heigth=5"])
