"""The memory that a run needs at least, and the memory that there is."""

import pytest

from wdjax.jobs import bound, setup
from wdjax.jobs.compare import CompareOptions
from wdjax.jobs.options import AuditOptions, SelectOptions, TrainOptions
from wdjax.jobs.transfer import TransferOptions, run_transfer
from wdjax.memory import memory_within_reach

GIB = 2**30
MEMINFO = """MemTotal:       16777216 kB
MemFree:         4194304 kB
MemAvailable:    5242880 kB
Active(file):    1048576 kB
Inactive(file):  1048576 kB
SReclaimable:          0 kB
SwapFree:        1048576 kB
"""
STATUS = "Name:\tpython\nRssAnon:\t 1048576 kB\nVmSwap:\t 0 kB\n"


def machine(root, groups="", **files):
    """A `/proc` and `/sys/fs/cgroup` of one's own; `files` by path, `/` as `__`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (root / "proc/self/status").write_text(STATUS)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return str(root)


def group(folder, limit, used, *, version):
    """The files of a control group that has a quarter of a GiB of files in memory."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    stat = f"anon 1\n{names[2]} {GIB // 4}\n"
    texts = (limit, used, stat)
    paths = (*names[:2], "memory.stat")
    return {f"{folder}__{p}" if folder else p: t for p, t in zip(paths, texts, strict=True)}


def test_of_a_machine_it_is_what_is_free_or_only_repeats_a_file_and_what_one_has(tmp_path):
    """4 free + 2 of files (more than the 5 "available"), 1 to swap to, 1 that this process has."""
    assert memory_within_reach(machine(tmp_path)) == 8 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_of_a_control_group_it_is_what_its_limit_leaves(version, tmp_path):
    """2 GiB less 1 in use, of which 1/4 are files: 1.25, with swap and one's own 3.25."""
    top = "memory__" if version == 1 else ""
    line = "4:memory:/jobs/mine\n" if version == 1 else "0::/jobs/mine\n"
    files = group(f"{top}jobs__mine", 2 * GIB, GIB, version=version)
    assert memory_within_reach(machine(tmp_path, line, **files)) == 3.25 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_groups_around_it_count_too_and_no_limit_is_none(version, tmp_path):
    top = "memory__" if version == 1 else ""
    line = "9:cpu,memory:/jobs/mine\n" if version == 1 else "0::/jobs/mine\n"
    none = 9223372036854771712 if version == 1 else "max\n"
    files = group(f"{top}jobs__mine", none, GIB, version=version)
    files |= group(f"{top}jobs", GIB, GIB, version=version)
    assert memory_within_reach(machine(tmp_path, line, **files)) == 2.25 * GIB


def test_in_a_container_the_group_is_the_top_of_what_is_mounted(tmp_path):
    files = group("memory", GIB, GIB, version=1)
    root = machine(tmp_path, "4:memory:/docker/0123\n1:cpu:/\n", **files)
    assert memory_within_reach(root) == 2.25 * GIB


def test_where_nobody_says_there_is_no_bound(tmp_path):
    assert memory_within_reach(str(tmp_path)) is None


def at(monkeypatch, number):
    monkeypatch.setattr(bound, "memory_within_reach", lambda: number)


OPTIONS = {
    "train": TrainOptions(strength=0.0, data="iris", epochs=1, seeds=3, out="nowhere"),
    "stream": TrainOptions(strength=0.0, data="iris", epochs=1, stream=True, out="nowhere"),
    "select": SelectOptions(data="iris", epochs=1, seeds=3, strengths=(0.0, 0.1), out="nowhere"),
    "compare": CompareOptions(data="iris", epochs=1, seeds=3, out="nowhere"),
    "audit": AuditOptions(strength=0.0, data="iris", epochs=1),
}
# Iris: 4 inputs, 100 hidden units, 3 classes.
PARAMS = 4 * (4 * 100 + 100 + 100 * 3 + 3)
STATE, GRADIENT, DATA = 3 * PARAMS, 4 * 4 * 100, 150 * (4 * 4 + 4)
"""Adam's two moments have the shapes of the params; besides, two counters."""
EPOCH = 4 * (2 + 8 * 4)
HELD_OUT = 4 * 120
"""A loss for each example that is held out once by the folds."""
NEEDED = {
    "train": 3 * STATE + GRADIENT + 3 * EPOCH + DATA,
    "stream": 2 * STATE + GRADIENT + DATA,
    "select": 2 * STATE + GRADIENT + 2 * 3 * (5 * 8 + HELD_OUT) + DATA,
    "compare": 2 * STATE + GRADIENT + 3 * (5 * 8 + HELD_OUT) + DATA,
    "audit": PARAMS + DATA,
}


@pytest.mark.parametrize("job", OPTIONS)
def test_a_run_that_cannot_fit_is_refused_with_both_numbers_and_one_that_may_is_not(
    job, monkeypatch
):
    """The bound by hand; optimisers count their steps too, in less than 100 bytes."""
    at(monkeypatch, NEEDED[job] - 1)
    with pytest.raises(ValueError, match="this needs at least .* GiB of memory") as refused:
        setup.prepare(OPTIONS[job])
    assert "and there are" in str(refused.value) and "smaller model" in str(refused.value)
    at(monkeypatch, NEEDED[job] + 100)
    setup.prepare(OPTIONS[job])


def test_the_numbers_are_in_gib(monkeypatch):
    """10 million seeds of 3 x 803 floats of state each, and three counters: of Adam, of the
    schedule and of the decay."""
    at(monkeypatch, 8 * GIB)
    options = TrainOptions(strength=0.0, data="iris", epochs=1, seeds=10_000_000)
    with pytest.raises(ValueError) as refused:
        setup.prepare(options)
    found = str(refused.value)
    assert "there are 8 GiB" in found and "fewer --seeds or --devices" in found
    state = (STATE + 12) * 10_000_000 / GIB
    assert f"{state:.3g} GiB the params" in found


def test_a_transfer_of_more_trials_than_fit_is_refused_before_any_is_planned(monkeypatch, tmp_path):
    """Two million seeds of three strengths: a gigabyte and more a hundred examples."""
    at(monkeypatch, 2 * GIB)
    options = TransferOptions(
        data="iris",
        rows=(10, 20, 30, 40),
        batch_size=(8,),
        strengths=(0.1, 1.0, 3.0),
        learning_rates=(0.1,),
        seeds=2_000_000,
        folds=2,
        out=str(tmp_path / "out"),
    )
    noted = 3 * 2_000_000 * (2 * 8 + HELD_OUT) / GIB
    with pytest.raises(ValueError, match=f"{noted:.3g} GiB what is noted of them.*fewer --seeds"):
        run_transfer(options)
    assert not (tmp_path / "out").exists()


def test_more_steps_than_int32_counts_are_refused():
    """Iris has 135 examples to train on or fewer: at batch 4 at least 2 steps an epoch."""
    options = TrainOptions(strength=0.0, data="iris", epochs=2**31 - 1, batch_size=4)
    with pytest.raises(ValueError, match="`epochs` must be at most .* steps an epoch 2147483647"):
        setup.prepare(options)
