"""The scan agrees with tarfile on what is whole, and tells what is not."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.tar import BLOCK, Member, scan
from tests.drawing import write_member

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1)
LONG = "folder/" * 40 + "näme" * 60 + ".jpg"
WHOLE = [("a.json", b"{}"), ("a.jpg", b"j" * 700), ("a.txt", b""), ("b.jpg", b"\1" * 1024)]


def archive(samples, form=tarfile.PAX_FORMAT):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as tar:
        for name, data in samples:
            write_member(tar, name, data)
    return written.getvalue()


def contents(path, data):
    """What the scan finds, as (name, bytes), and the damage."""
    path.write_bytes(data)
    found = scan(path)
    return [(m.name, data[m.offset : m.offset + m.size]) for m in found.members], found.damage


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tar") / "00000.tar"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_agrees_with_tarfile(path, form):
    samples = [*WHOLE, ("d/" * 60 + "x.jpg", b"deep"), ("é" * 40, b"\0" * BLOCK)]
    samples += [] if form == tarfile.USTAR_FORMAT else [(LONG, b"long"), ("after", b"1")]
    data = archive(samples, form)
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        listed = [Member(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert list(scan(path).members) == listed
    assert contents(path, data) == (samples, None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=2000)), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_what_tarfile_writes_is_read(path, samples, form):
    assert contents(path, archive(samples, form)) == (samples, None)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_anywhere_is_told_or_loses_nothing(path, form):
    samples = [*WHOLE, (LONG, b"x" * 600)]
    data = archive(samples, form)
    for block in range(len(data) // BLOCK):
        for end in (block * BLOCK, block * BLOCK + 100):
            found, damage = contents(path, data[:end])
            assert found == samples[: len(found)]
            assert damage or found == samples, f"cut at {end}"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 7 * BLOCK - 1), st.sampled_from([1, 16, BLOCK, 8 * BLOCK]))
def test_zeros_over_headers_are_told(path, start, length):
    samples = WHOLE * 3
    data = bytearray(archive(samples))
    data[start : start + length] = bytes(length)
    found, damage = contents(path, bytes(data))
    names = [name for name, _ in found]
    assert damage or names == [name for name, _ in samples]


@pytest.mark.parametrize("length", [BLOCK, 8 * BLOCK])
def test_a_zeroed_header_is_not_taken_for_the_end(path, length):
    data = bytearray(archive([("a.jpg", bytes(3 * BLOCK)), ("b.jpg", bytes(9 * BLOCK)), *WHOLE]))
    start = 4 * BLOCK  # the second header
    data[start : start + length] = bytes(length)
    found, damage = contents(path, bytes(data))
    assert found == [("a.jpg", bytes(3 * BLOCK))]
    assert damage == f"zeroed header at byte {start}"


def test_every_changed_header_byte_is_told(path):
    data = archive(WHOLE)
    start = 2 * BLOCK
    for place in range(start, start + BLOCK):
        changed = bytearray(data)
        changed[place] ^= 1
        found, damage = contents(path, bytes(changed))
        assert damage or found == WHOLE, f"byte {place}"
        assert found[:1] == WHOLE[:1]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "0 bytes"),
        (b"x", "cut inside the header"),
        (b"\x1f\x8b\x08" + bytes(range(256)) * 4, "at byte 0"),
        (archive(WHOLE)[: 5 * BLOCK], "cut between two members"),
        (archive(WHOLE)[: 2 * BLOCK + 5], "cut inside the header"),
        (archive(WHOLE)[: 3 * BLOCK + 5], "cut inside the member"),
        (archive([("x" * 70_000, b"")], tarfile.GNU_FORMAT), "a name of 70001 bytes"),
    ],
)
def test_damage_is_named(path, data, told):
    assert told in contents(path, data)[1]


def test_an_archive_of_nothing_is_whole(path):
    assert contents(path, archive([])) == ([], None)


def test_links_and_devices_are_not_members_and_names_are_only_names(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for kind in (*kinds, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.jpg")
            member.type, member.linkname = kind, str(secret) + "x" * 150
            tar.addfile(member)
        for name in ("../../x.jpg", str(secret)):
            write_member(tar, name, b"inside")
    before = sorted(tmp_path.rglob("*"))
    data = written.getvalue()
    path = tmp_path / "evil.tar"
    found, damage = contents(path, data)
    assert found == [("../../x.jpg", b"inside"), (str(secret), b"inside")]
    assert damage is None
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])


def test_sizes_of_eight_gigabytes_and_more_are_understood(path):
    data = bytearray(archive([("a.jpg", b"x")]))
    data[124:136] = b"\x80" + (9 << 30).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:BLOCK]) + 8 * 32)
    assert contents(path, bytes(data)) == ([], "cut inside the member at byte 0")
