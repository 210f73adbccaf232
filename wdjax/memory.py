"""Memory: what this process could have at most, and what a compiled program takes."""

import pathlib
from collections.abc import Iterator
from typing import Any

_REST = ("Active(file)", "Inactive(file)", "SReclaimable")
_NO_LIMIT = 1 << 60
"""Version 1 of control groups says so by a number near 2^63."""


def memory_within_reach(root: str = "/") -> int | None:
    """Bytes that this process has, and those it could still get; `None` where nobody says.

    On Linux: what is free, what only repeats a file, and what can be swapped out; or what its
    control group (version 1 or 2, and the groups around it) leaves, if that is less. Never less
    than there is: what other processes hold may count as taken, and nothing else.
    """
    machine = _table(pathlib.Path(root, "proc/meminfo"), factor=1024)
    if "MemFree" not in machine:
        return None
    swap = machine.get("SwapFree", 0)
    free = machine["MemFree"] + sum(machine.get(name, 0) for name in _REST)
    free = max(free, machine.get("MemAvailable", 0))
    free = min([free, *_free_of_groups(pathlib.Path(root))])
    own = _table(pathlib.Path(root, "proc/self/status"), factor=1024)
    return free + swap + own.get("RssAnon", 0) + own.get("VmSwap", 0)


def memory_of(compiled: Any) -> int | None:
    """Bytes that a compiled program takes on a device: arguments, results and what it holds
    between, by its compiler's own analysis; None where that says nothing."""
    told = compiled.memory_analysis()
    if told is None:
        return None
    held = told.temp_size_in_bytes + told.argument_size_in_bytes + told.output_size_in_bytes
    # What is donated is argument and result at once.
    return int(held - told.alias_size_in_bytes)


def in_words(number: int | None) -> str:
    """Bytes in MiB, or in GiB from 128 MiB on."""
    if number is None:
        return "unknown"
    return f"{number / 2**30:.3g} GiB" if number >= 2**27 else f"{number / 2**20:.3g} MiB"


def memory_on(device: Any) -> int | None:
    """Bytes that a device has in all, as it says itself; of a CPU those within reach of this
    process. None where nobody says."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu":
        return memory_within_reach()
    return limit


def _free_of_groups(root: pathlib.Path) -> Iterator[int]:
    """What each control group that this process is in leaves free."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0":
            top = root / "sys/fs/cgroup"
            names = "memory.max", "memory.current", ("active_file", "inactive_file")
        elif "memory" in kinds.split(","):
            top = root / "sys/fs/cgroup/memory"
            files = "total_active_file", "total_inactive_file"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", files
        else:
            continue
        group = top / path.strip("/")
        # In a container the path may be the one outside; its own group is then the top.
        for folder in (group, *group.parents):
            yield from _free_of_group(folder, *names)
            if folder == top:
                break


def _free_of_group(
    folder: pathlib.Path, limit: str, usage: str, files: tuple[str, ...]
) -> Iterator[int]:
    most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
    if most.isdecimal() and used.isdecimal() and int(most) < _NO_LIMIT:
        stat = _table(folder / "memory.stat")
        yield max(0, int(most) - int(used) + sum(stat.get(name, 0) for name in files))


def _table(path: pathlib.Path, factor: int = 1) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in _text(path).splitlines())
    return {
        row[0].rstrip(":"): int(row[1]) * factor
        for row in rows
        if len(row) > 1 and row[1].isdecimal()
    }


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
