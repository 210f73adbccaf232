"""Data files that are cut, flipped, forged or no files: one sentence by the file, and soon."""

import io
import os
import pathlib
import struct
import zipfile

import numpy as np
import pytest

from wdjax.data import load_data, make_dataset
from wdjax.data.archive import read_arrays
from wdjax.data.encoding import InputColumn
from wdjax.data.files import read_inputs

INPUTS = np.random.default_rng(0).random((60, 3))
TARGETS = np.arange(60) % 2


def saved(path, **arrays):
    np.savez(path, **{"inputs": INPUTS, "targets": TARGETS, **arrays})
    return path.read_bytes()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def forged(shape, dtype="<f8", content=b""):
    """An `.npy` whose header says what it likes."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def refused(path, words, **options):
    with pytest.raises(ValueError, match=words) as found:
        load_data(path, **options)
    assert type(found.value) is ValueError or found.type.__module__.startswith("wdjax")
    assert path.name in str(found.value)
    assert len(str(found.value)) < 1000


# ------------------------------------------------------------------------ no file to read


@pytest.mark.parametrize("ending", ["npz", "csv"])
def test_a_folder_a_pipe_and_a_device_are_no_data_file(tmp_path, ending):
    """A pipe would be waited for, `/dev/zero` read for ever."""
    (tmp_path / f"folder.{ending}").mkdir()
    refused(tmp_path / f"folder.{ending}", "is a folder; give a file in it")
    os.mkfifo(tmp_path / f"pipe.{ending}")
    refused(tmp_path / f"pipe.{ending}", "is a pipe or a device.*save what it gives as a file")
    (tmp_path / f"zero.{ending}").symlink_to("/dev/zero")
    refused(tmp_path / f"zero.{ending}", "is a pipe or a device")


@pytest.mark.parametrize("ending", ["npz", "csv"])
def test_a_name_that_no_system_takes_is_refused_by_name(tmp_path, ending):
    with pytest.raises(ValueError, match="x{300}.*cannot be read: File name too long"):
        load_data(tmp_path / f"{'x' * 300}.{ending}")
    with pytest.raises(ValueError, match="cannot be read: embedded null byte"):
        load_data(f"a\0b.{ending}")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / f"in.{ending}", "does not exist")
    (tmp_path / f"loop.{ending}").symlink_to(tmp_path / f"loop.{ending}")
    refused(tmp_path / f"loop.{ending}", "cannot be read: Too many levels")


@pytest.mark.parametrize("ending", ["npz", "csv"])
def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch, ending):
    """As root, whom no permission stops, the system's answer is given by hand."""
    path = tmp_path / f"closed.{ending}"
    saved(path) if ending == "npz" else path.write_text("a,y\n1,0\n2,1\n")

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "open", deny)
    monkeypatch.setattr(zipfile, "ZipFile", deny)
    refused(path, "Permission denied")


# ------------------------------------------------------------------------------- archives


def test_an_npz_cut_at_any_place_is_refused(tmp_path):
    path = tmp_path / "cut.npz"
    whole = saved(path)
    for size in (0, 1, 30, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "is no .npz file|cannot be read as .npz")


def test_an_npz_with_any_bit_flipped_is_refused_or_reads_the_same(tmp_path):
    """What is harmless is a date or a comment of the archive."""
    path, random = tmp_path / "flip.npz", np.random.default_rng(1)
    whole, before = saved(path), load_data(path)
    for place in random.integers(0, len(whole), 300):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        try:
            after = load_data(path)
        except ValueError as error:
            assert "flip.npz" in str(error) and len(str(error)) < 1000
            continue
        np.testing.assert_array_equal(after.inputs, before.inputs)
        np.testing.assert_array_equal(after.targets, before.targets)


@pytest.mark.parametrize(
    "shape",
    [(10**12,), (10**12, 3), (2**62, 2**62), (60, 4), (59, 3), (-60, -3), (0, 10**30)],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_shape_that_the_file_does_not_hold_is_refused_before_memory_is_taken(
    tmp_path, shape, compression
):
    path = tmp_path / "huge.npz"
    members = {"inputs.npy": forged(shape, content=INPUTS.tobytes()), "targets.npy": npy(TARGETS)}
    zipped(path, members, compression)
    refused(path, r"'inputs' claims shape \(.*bytes, and the file holds 1440 for it.*np.savez")


def test_a_size_that_the_archive_only_claims_is_refused(tmp_path):
    """Both sizes of the directory say 2^31, and so does the header: no deflate expands so far."""
    path, size = tmp_path / "bomb.npz", 2**31
    body = forged((size,), "|u1", b"\0" * 10_000)
    zipped(path, {"inputs.npy": body, "targets.npy": npy(TARGETS)}, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    claimed = struct.pack("<I", size + len(body) - 10_000)
    path.write_bytes(whole.replace(struct.pack("<I", len(body)), claimed))
    refused(path, "'inputs' claims shape")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "cannot be read as .npz"),
        (b"no array at all", "cannot be read as .npz"),
        (b"\x93NUMPY\x07\x00" + b"\0" * 100, "version 7.0 of the format"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O'}  \n", "cannot be read as .npz"),
        (npy(INPUTS) + b"more", "claims shape"),
        (npy(np.zeros(60, dtype=[("a", "f8")])), "must be real numbers"),
        (npy(INPUTS * 1j), "must be real numbers, got dtype complex128"),
        (npy(np.zeros((60, 3), "M8[s]")), "must be real numbers, got dtype datetime64"),
        (npy(np.zeros((60, 3), "U4")), "must be real numbers, got dtype <U4"),
        (npy(np.array([{}] * 60)), "not Python objects"),
        (npy(np.float64(3.0)), "`inputs` must have a leading axis of examples"),
        (npy(np.zeros((60, 0))), r"`inputs` has shape \(60, 0\)"),
        (npy(np.zeros((0, 3))), "`inputs` holds no examples"),
        (npy(np.zeros((60, 1, 1, 1, 1))), "tables are"),
        (npy(INPUTS[:7]), "7 examples and `targets` 60"),
        (npy(np.full((60, 3), np.nan)), "must be finite, got nan at row 0"),
    ],
)
def test_inputs_that_are_no_table_of_numbers_are_refused(tmp_path, content, words):
    zipped(tmp_path / "my.npz", {"inputs.npy": content, "targets.npy": npy(TARGETS)})
    with pytest.raises(ValueError, match=words) as found:
        load_data(tmp_path / "my.npz")
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize(
    "targets",
    [
        np.zeros((60, 0)),
        np.zeros((60, 0), int),
        np.zeros((60, 0), "U3"),
        np.array(1),
        np.zeros(60, "M8[s]"),
        np.zeros(60, complex),
        np.zeros(60, [("a", "f8")]),
        np.array([b"\xff", b"b"] * 30),
        np.array(["w" * 10_000, "v"] * 30).reshape(30, 2),
    ],
    ids=lambda t: f"{t.dtype.kind}{t.shape}",
)
def test_targets_that_no_loss_can_use_are_refused(tmp_path, loss, targets):
    zipped(tmp_path / "my.npz", {"inputs.npy": npy(INPUTS), "targets.npy": npy(targets)})
    with pytest.raises(ValueError, match=r"`targets` |60 examples and") as found:
        load_data(tmp_path / "my.npz", loss=loss)
    assert len(str(found.value)) < 1000


def test_an_npy_renamed_an_encrypted_or_a_doubled_member_is_refused(tmp_path):
    path = tmp_path / "my.npz"
    path.write_bytes(npy(INPUTS))
    refused(path, "is no .npz file; save it with np.savez")
    whole = bytearray(saved(path))
    for place in (6, whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"PK\x01\x02")) + 8):
        whole[place] |= 1
    path.write_bytes(whole)
    refused(path, "cannot be read as .npz.*encrypted")
    with pytest.warns(UserWarning, match="Duplicate name"):
        with zipfile.ZipFile(path, "w") as archive:
            for _ in range(2):
                archive.writestr("inputs.npy", npy(INPUTS))
    refused(path, "two arrays 'inputs'")


def test_a_compression_that_numpy_does_not_write_is_refused_or_read(tmp_path):
    path = tmp_path / "my.npz"
    members = {"inputs.npy": npy(INPUTS), "targets.npy": npy(TARGETS)}
    zipped(path, members, zipfile.ZIP_LZMA)
    np.testing.assert_array_equal(load_data(path).inputs, INPUTS.astype(np.float32))
    saved(path)
    whole = bytearray(path.read_bytes())
    whole[8] = whole[whole.index(b"PK\x01\x02") + 10] = 99  # A method that nobody has.
    path.write_bytes(whole)
    refused(path, "cannot be read as .npz.*compression")


def test_memory_that_the_machine_has_not_is_a_sentence(tmp_path, monkeypatch):
    saved(tmp_path / "my.npz")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np.lib.format, "read_array", fail)
    refused(tmp_path / "my.npz", "'inputs' takes 0.0 GiB, which this machine has no memory for")


@pytest.mark.parametrize(
    "change", [np.asfortranarray, lambda x: x.astype(">f8"), lambda x: x.astype(np.float16)]
)
def test_any_order_of_bytes_or_axes_is_read(tmp_path, change):
    saved(tmp_path / "my.npz", inputs=change(INPUTS), targets=TARGETS.astype(">i2"))
    data = load_data(tmp_path / "my.npz")
    np.testing.assert_array_equal(data.inputs, change(INPUTS).astype(np.float32))
    np.testing.assert_array_equal(data.targets, TARGETS)
    assert data.inputs.dtype.isnative and data.targets.dtype.isnative
    saved(tmp_path / "my.npz", inputs=INPUTS > 0.5, targets=TARGETS > 0)
    np.testing.assert_array_equal(load_data(tmp_path / "my.npz").inputs, INPUTS > 0.5)


def test_all_arrays_of_an_archive_are_read_where_none_is_named(tmp_path):
    saved(tmp_path / "my.npz", third=np.arange(3))
    found = read_arrays(tmp_path / "my.npz")
    assert list(found) == ["inputs", "targets", "third"]
    np.testing.assert_array_equal(found["third"], np.arange(3))


# --------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    "content, words",
    [
        (b"a,y\n" + b"1" * 131_073 + b",0\n", "a cell has more than 131,072 char.* in line 2"),
        (b"a,y\n1,0\n" + b"x" * 100_000 + b",0\n", r"'x+'\.\.\. \(100,000 characters\) in line 3"),
        (b"a,y\n1,w\x00\n2,v\n", "line 2 holds a NUL byte"),
        (b"a,y\n1,0\n2,\xff\n", "0xff .*none of UTF-8; save it as CSV UTF-8"),
        ("a,y\n1,0\n".encode("utf-16"), "0xff after line 0 is none of UTF-8"),
        (b'a,y\n1,w\n2,"v\n3,w\n', "a quote is never closed, in the row that begins in line 3"),
        (b'a,y\n1,"w"v\n2,w\n', "closing quote is followed by more.* line 2"),
        (b"a,y\n1,2,3\n", "line 2 has 3 cells and the header 2"),
        (b"", "is empty; give a header"),
        (b"\n\n\n", "is empty; give a header"),
        (b"a" * 5000 + b",y\n1,0\nv,0\n", r"'a+'\.\.\. \(5,000 characters\) must hold numbers"),
        (b"\x1b]0;t\x07a,y\nv,0\n1,0\n", r"column '\\x1b\]0;t\\x07a' must hold numbers"),
        (b'"a\nb",y\n1,0\nv,0\n', r"column 'a\\nb' must hold numbers, got 'v' in line 4"),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused_by_line(tmp_path, content, words):
    path = tmp_path / "my.csv"
    path.write_bytes(content)
    refused(path, words)


def test_a_predictions_table_is_read_as_strictly(tmp_path):
    (tmp_path / "my.csv").write_bytes(b'a,b\n1,"2\n3,4\n')
    with pytest.raises(ValueError, match="a quote is never closed, in the row that begins in lin"):
        read_inputs(tmp_path / "my.csv", [InputColumn("a"), InputColumn("b")], 2)


def test_a_table_of_many_columns_is_looked_through_once(tmp_path):
    """Of fifty thousand names, each compared with all others, it would be minutes."""
    names = [f"column {i}" for i in range(5_000)]
    rows = "\n".join(",".join(["1.5"] * 5_000 + [str(label)]) for label in (0, 1))
    (tmp_path / "wide.csv").write_text(f"{','.join(names)},y\n{rows}\n")
    assert load_data(tmp_path / "wide.csv").inputs.shape == (2, 5_000)
    found = read_inputs(tmp_path / "wide.csv", [*map(InputColumn, names)], 5_000, "y")
    assert found.inputs.shape == (2, 5_000)


def test_a_target_that_is_not_there_is_told_the_columns_in_quotes(tmp_path):
    (tmp_path / "my.csv").write_text("a\x1b,y\n1,0\n2,1\n")
    refused(tmp_path / "my.csv", r"'z' is no column of .* which has 'a\\x1b', 'y'", target="z")


def test_a_scalar_and_an_empty_target_are_refused_in_memory_too():
    with pytest.raises(ValueError, match="`inputs` must have a leading axis"):
        make_dataset(3.0, TARGETS)
    with pytest.raises(ValueError, match=r"`targets` has shape \(60, 0\) and holds nothing"):
        make_dataset(INPUTS, np.zeros((60, 0)), loss="squared_error")
