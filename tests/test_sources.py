"""Folders, files and patterns become named sources; what is not there is told."""

import pytest

from clipray import uri
from clipray.errors import ConfigError, InputError
from clipray.sources import absolute, find_sources


@pytest.fixture(params=["local", "memory"])
def data(request, tmp_path):
    """Three folders of two shards each, and one of photos."""
    root = tmp_path if request.param == "local" else uri.at(f"memory://{tmp_path.name}")
    for part in range(3):
        folder = root / f"laion/part-{part}"
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(2):
            (folder / f"{shard:05d}.tar").write_bytes(b"x")
            (folder / f"{shard:05d}_stats.json").write_bytes(b"{}")
    (root / "photos/deep").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "note.md", "deep/c.jpg"):
        (root / "photos" / name).write_bytes(b"x")
    return root


def found(*inputs):
    """Name → (folder's name, chosen)."""
    sources = find_sources([str(given) for given in inputs]).found
    return {source.name: (source.root.name, source.chosen) for source in sources}


def test_folders_and_files_are_named_after_themselves_or_as_they_are_told(data):
    assert found(data / "photos") == {"photos": ("photos", None)}
    assert found(f"mine={data / 'photos'}") == {"mine": ("photos", None)}
    single = data / "laion/part-0/00001.tar"
    assert found(single) == {"00001": ("part-0", ("00001.tar",))}
    assert found(f"x={single}") == {"x": ("part-0", ("00001.tar",))}
    assert found(data / "photos/a.jpg") == {"a.jpg": ("photos", ("a.jpg",))}


def test_braces_and_globs_choose_files_of_a_folder(data):
    folder = f"{data}/laion/part-1"
    both = {"part-1": ("part-1", ("00000.tar", "00001.tar"))}
    assert found(f"{folder}/{{00000..00001}}.tar") == both
    assert found(f"{folder}/{{00001,00000}}.tar") == both
    assert found(f"{folder}/*.tar") == both
    assert found(f"{data}/photos/*.jpg") == {"photos": ("photos", ("a.jpg",))}


def test_patterns_over_folders_make_a_source_of_each(data):
    chosen = ("00000.tar", "00001.tar")
    names = {f"laion/part-{part}": (f"part-{part}", chosen) for part in range(3)}
    assert found(f"{data}/laion/part-*/*.tar") == names
    assert found(f"{data}/laion/part-{{0..2}}/{{00000..00001}}.tar") == names
    assert found(f"x={data}/laion/*/*.tar").keys() == {f"x/part-{part}" for part in range(3)}
    assert found(f"{data}/laion/part-*") == {
        f"laion/part-{part}": (f"part-{part}", None) for part in range(3)
    }


def test_what_braces_name_and_is_not_there_is_told_and_the_rest_is_taken(data):
    sources = find_sources([f"{data}/laion/part-0/{{00000..00003}}.tar"])
    assert sources.found[0].chosen == ("00000.tar", "00001.tar")
    assert list(sources.missing) == [f"{data}/laion/part-0/0000{n}.tar" for n in (2, 3)]


def test_overlapping_braces_name_a_file_once(data):
    assert found(f"{data}/laion/part-0/{{00000,00000,*}}.tar") == {
        "part-0": ("part-0", ("00000.tar", "00001.tar"))
    }


@pytest.mark.parametrize("pattern", ["photos/*.tar", "none/{0..3}.tar", "none-*"])
def test_a_pattern_without_a_match_is_refused(data, pattern):
    with pytest.raises(InputError, match="matches nothing"):
        find_sources([f"{data}/{pattern}"])


def test_missing_inputs_and_equal_names_are_refused(data):
    with pytest.raises(InputError, match="no such folder or file"):
        find_sources([f"{data}/none"])
    with pytest.raises(InputError, match=f"two inputs are called 'photos'.* other={data}/laion"):
        find_sources([f"{data}/photos", f"photos={data}/laion"])


def test_braces_are_bounded():
    with pytest.raises(ConfigError, match="more than 1000000 files"):
        find_sources(["/x/{0..999}{0..999}{0..999}.tar"])


def test_a_path_that_exists_is_no_pattern(tmp_path):
    folder = tmp_path / "a[1]{x,y}*"
    folder.mkdir()
    assert found(folder) == {folder.name: (folder.name, None)}


def test_a_question_mark_is_no_pattern_in_a_uri():
    with pytest.raises(InputError, match="no such folder"):
        find_sources(["memory://nowhere/a?b"])


def test_an_input_is_made_absolute_under_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert absolute("x/*.tar") == str(tmp_path / "x/*.tar")
    assert absolute("mine=x") == f"mine={tmp_path / 'x'}"
    assert absolute("a=b") == str(tmp_path / "a=b")
    for whole in ("s3://bucket/x", "mine=s3://bucket/x", str(tmp_path / "a=b")):
        assert absolute(whole) == whole
