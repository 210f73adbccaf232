"""What a run was told, as its folder keeps it: sealed, checked, and known from its checkpoints."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from wdjax.checkpoint import Checkpoints
from wdjax.jobs.options import TrainOptions
from wdjax.jobs.resume import CONFIG, read_config, resumed_options, start_anew
from wdjax.writing import DamagedFileError

TOLD = {
    name: value
    for name, value in dataclasses.asdict(TrainOptions(strength=0.1, epochs=3)).items()
    if name not in ("out", "name", "overwrite", "resume", "devices", "distributed", "download")
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    start_anew(folder, TOLD)
    return folder


def test_what_a_run_was_told_is_read_back_as_it_was(run):
    assert read_config(run) == TOLD
    options = resumed_options(str(run), {})
    assert (options.strength, options.epochs, options.resume) == (0.1, 3, str(run))


def test_every_flipped_bit_of_a_config_is_found_or_changes_nothing(run):
    content = (run / CONFIG).read_bytes()
    found = 0
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (run / CONFIG).write_bytes(flipped)
        try:
            assert read_config(run) == TOLD
        except DamagedFileError as error:
            assert CONFIG in str(error) and "\n" not in str(error)
            found += 1
    assert found > 0.8 * len(content) / 3


def test_a_config_that_is_damaged_or_gone_is_taken_from_the_newest_whole_checkpoint(run):
    saved = Checkpoints(run / "checkpoints")
    for step in (4, 8):
        saved.save(step, {"w": jnp.zeros(2)}, config=TOLD)
    saved.close()
    (run / "checkpoints" / "step_0000000008" / "checkpoint.json").write_text("{}")
    (run / CONFIG).write_bytes((run / CONFIG).read_bytes().replace(b"0.1", b"0.3"))
    with pytest.warns(RuntimeWarning, match="not what was written.*from its checkpoint of step 4"):
        assert read_config(run) == TOLD
    (run / CONFIG).unlink()
    with pytest.warns(RuntimeWarning, match="config.json is gone. .* checkpoint of step 4"):
        assert read_config(run) == TOLD


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "holds no JSON object: list"),
        (b'{"sha256": "0"}', "is not what was written"),
        (b'{"epochs": "many"}', "says epochs = 'many', which cannot be"),
        (b'{"epochs": true}', "says epochs = True, which cannot be"),
        (b'{"epochs": 1.5}', "says epochs = 1.5, which cannot be"),
        (b'{"data": null}', "says data = None, which cannot be"),
        (b'{"strength": [0.1]}', r"says strength = \[0.1\], which cannot be"),
        (b'{"stream": 1}', "says stream = 1, which cannot be"),
        (b'{"epoch": 1}', "says 'epoch', which is no option of a run"),
    ],
)
def test_a_config_that_holds_anything_else_is_told_in_one_sentence(content, words, run):
    (run / CONFIG).write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"{words}.*No checkpoint says what it was"):
        resumed_options(str(run), {})


def test_a_config_of_an_earlier_version_is_read_with_a_warning(run):
    (run / CONFIG).write_text(json.dumps(TOLD))
    with pytest.warns(RuntimeWarning, match="carries no SHA-256: an earlier version wrote it"):
        assert read_config(run) == TOLD


def test_what_is_no_folder_of_a_run_is_refused_and_what_cannot_be_read_is_told(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "nowhere", tmp_path / "file", tmp_path):
        with pytest.raises(ValueError, match=f"holds no {CONFIG}; give the folder of a run"):
            resumed_options(str(folder), {})
    (run / CONFIG).unlink()
    (run / CONFIG).mkdir()
    with pytest.raises(IsADirectoryError, match=CONFIG):
        resumed_options(str(run), {})
