"""Batches of data that does not fit: seeded, split over processes, resumable to the example."""

import itertools
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from wdjax.checks import check_positive_int
from wdjax.data.batches import as_batch, checked_item, pad_batch, to_devices
from wdjax.data.dataset import Dataset, hash_of
from wdjax.data.tfds import TfdsSource, check_labels
from wdjax.data.views import View
from wdjax.extras import need
from wdjax.types import Batch

_ENDLESS = 2**60


class Stream(Iterator[Batch]):
    """An iterator of batches that knows where it is.

    `get_state` is small and JSON; a stream over the same data that is given it by `set_state`
    goes on with the batch that would have come next.
    """

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """The position, and what it is a position in."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave.

        Raises:
          ValueError: if it was in other data, saying what differs.
        """

    def close(self) -> None:
        """Stops reading ahead, if anything does."""


def make_stream(
    source: Any,
    *,
    batch_size: int,
    seed: int | None = None,
    num_epochs: int | None = 1,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int = 2,
    num_workers: int = 0,
) -> "GrainStream":
    """Batches from anything with `len(source)` and `source[i]`, read ahead by grain.

    The order of an epoch is a permutation that depends on `seed` and the epoch alone; epochs
    follow one another without a gap, so every example comes exactly once an epoch, and only the
    very last batch is short: it is filled up with rows of weight 0. Every process takes its
    part of each global batch, so neither the number of processes nor of workers changes what a
    batch holds, and a run may resume on another number of them.

    Args:
      source: a `Dataset`, a `TfdsSource`, a `View` of one, or a sequence of `(inputs, targets[,
        weights])`, each a tree of arrays. Bytes of two or more axes are images and divided by 255.
      batch_size: of all processes together.
      seed: shuffles; None keeps the source's order, as evaluation wants.
      num_epochs: None never ends.
      process_index: which part of each batch is this process's; by default as JAX counts them.
      process_count: among how many it is divided; by default as JAX counts them.
      num_threads: readers of this process; more help where decoding takes longer than a step.
      num_workers: further processes that read, where threads do not suffice; the source is
        pickled to them.

    Raises:
      ValueError: for an empty source, a batch size that the processes do not divide, or a number
        out of range; while reading, for labels outside the source's classes.
      ImportError: if grain is not installed.
    """
    check_positive_int("batch_size", batch_size)
    check_positive_int("num_threads", num_threads)
    check_positive_int("num_workers", num_workers, low=0)
    if seed is not None:
        check_positive_int("seed", seed, low=0)
    if num_epochs is not None:
        check_positive_int("num_epochs", num_epochs)
    process_count = jax.process_count() if process_count is None else process_count
    process_index = jax.process_index() if process_index is None else process_index
    check_positive_int("process_count", process_count)
    check_positive_int("process_index", process_index, low=0, high=process_count - 1)
    num_examples = len(source.inputs) if isinstance(source, Dataset) else len(source)
    if num_examples == 0:
        raise ValueError("the data to stream hold no examples; give at least one.")
    check_divided(batch_size, process_count)
    loader = _Loader(
        source, num_examples, batch_size, seed, num_epochs, process_index, process_count
    )
    return GrainStream(loader, num_threads, num_workers)


def check_divided(batch_size: int, process_count: int) -> None:
    """Checks that each process gets as many rows of a batch as every other.

    Raises:
      ValueError: if not, with the next batch size that does.
    """
    if batch_size % process_count:
        raise ValueError(
            f"`batch_size` = {batch_size} must be divisible by the {process_count} processes; "
            f"take {-(-batch_size // process_count) * process_count}."
        )


def as_stream(
    data: Iterable, *, batch_size: int | None = None, num_epochs: int | None = 1
) -> Stream:
    """Batches from anything iterable of `(inputs, targets[, weights])`: a list, a DataLoader.

    Arrays of any library that NumPy can read. Weights are ones by default. A batch shorter than
    the first is filled up with rows of weight 0, so that no step compiles anew. A `Stream` is
    returned as it is. To resume, what was seen is passed over, which is exact if `data` yields
    the same again.

    Args:
      batch_size: rows of a batch; by default those of the first.
      num_epochs: passes over `data`; None never ends.

    Raises:
      ValueError: while iterating, for an item that is no such tuple, rows that differ in number,
        a batch larger than `batch_size`, or data that can be passed over only once.
    """
    if isinstance(data, Stream):
        return data
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
    if num_epochs is not None:
        check_positive_int("num_epochs", num_epochs)
    return IterableStream(data, batch_size, num_epochs)


def from_here(stream: Stream) -> Callable[[], Stream]:
    """A function that gives the stream from where it is now, again at every call.

    For evaluations: a stream made anew would hash its data anew.
    """
    begin = stream.get_state()

    def again() -> Stream:
        stream.set_state(begin)
        return stream

    return again


def prefetch_to_device(stream: Iterable, *, sharding: Any = None, size: int = 2) -> "DeviceStream":
    """The same batches as JAX arrays, `size` of them on their way while the device computes.

    Args:
      sharding: how a batch lies on the devices, such as `NamedSharding(mesh, P("data"))`; each
        process gives its own rows. None puts it on the default device.
      size: batches ahead of the one in use, >= 1. `get_state` is of the batch handed out last.

    Raises:
      ValueError: if `size` is below 1; while iterating, for a batch that the devices of
        `sharding` do not divide.
    """
    check_positive_int("size", size)
    return DeviceStream(as_stream(stream), sharding, size)


class GrainStream(Stream):
    """A `Stream` over a random-access source, see `make_stream`.

    Raises:
      ImportError: if grain is not installed.
    """

    def __init__(self, loader: "_Loader", num_threads: int, num_workers: int):
        self._loader, self._threads, self._workers = loader, num_threads, num_workers
        self._grain = _import_grain()
        self._next = 0
        self._batches: Any = None

    @property
    def num_batches(self) -> int | None:
        """Batches from start to end; None if there is no end."""
        return self._loader.num_batches

    def __next__(self) -> Batch:
        """The next batch of NumPy arrays."""
        if self._batches is None:
            self._batches = self._read_from(self._next)
        batch = next(self._batches)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The batches handed out so far, and what they were taken from."""
        return {"batches": self._next, **self._loader.describe()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that a stream over the same data gave.

        Raises:
          ValueError: if data, batch size or seed differ, by name.
        """
        check_same_stream(state, self.get_state())
        self.close()
        self._next = state["batches"]

    def close(self) -> None:
        """Stops reading ahead; the next batch starts it again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _read_from(self, start: int) -> Any:
        """Batches, not examples, are what grain maps, so workers cannot change their content."""
        stop = _ENDLESS if self.num_batches is None else self.num_batches
        ahead = self._grain.ReadOptions(
            num_threads=self._threads, prefetch_buffer_size=2 * self._threads
        )
        batches = self._grain.MapDataset.range(start, max(start, stop)).map(self._loader)
        batches = batches.to_iter_dataset(ahead)
        if self._workers:
            _parse_absl_flags()
            batches = batches.mp_prefetch(
                self._grain.MultiprocessingOptions(num_workers=self._workers)
            )
        return iter(batches)


class IterableStream(Stream):
    """A `Stream` over anything iterable, see `as_stream`.

    Raises:
      ValueError: in `next`, if the data cannot be walked over once more, or are no batches.
    """

    def __init__(self, data: Iterable, batch_size: int | None, num_epochs: int | None):
        self._data, self._size, self._num_epochs = data, batch_size, num_epochs
        self._next = 0
        self._batches = self._walk()

    def __next__(self) -> Batch:
        """The next batch of NumPy arrays."""
        batch = next(self._batches)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The batches handed out so far."""
        return {"batches": self._next, "source": type(self._data).__name__}

    def set_state(self, state: dict[str, Any]) -> None:
        """Passes over what was seen.

        Raises:
          ValueError: if the data are of another kind, or end before the position.
        """
        check_same_stream(state, self.get_state())
        self._batches, self._next = self._walk(), 0
        for _ in range(state["batches"]):
            if next(self, None) is None:
                raise ValueError(
                    f"cannot resume at batch {state['batches']}: the data end after {self._next}."
                )

    def _walk(self) -> Iterator[Batch]:
        epochs = itertools.count() if self._num_epochs is None else range(self._num_epochs)
        for epoch in epochs:
            empty = True
            for item in self._data:
                empty = False
                batch = as_batch(item)
                self._size = np.shape(batch.weights)[0] if self._size is None else self._size
                yield pad_batch(batch, self._size)
            if empty:
                again = "a second time: pass what can be, such as a list" if epoch else "once"
                raise ValueError(f"the data to stream cannot be walked over {again}.")


class DeviceStream(Stream):
    """A `Stream` whose batches are already on the device, see `prefetch_to_device`."""

    def __init__(self, stream: Stream, sharding: Any, size: int):
        self._stream, self._sharding, self._size = stream, sharding, size
        self._ahead: deque[tuple[Batch, dict[str, Any]]] = deque()
        self._state = stream.get_state()
        self._is_ahead = False

    def __next__(self) -> Batch:
        """The next batch of JAX arrays."""
        if self._is_ahead:
            self.set_state(self._state)
        while len(self._ahead) <= self._size:
            batch = next(self._stream, None)
            if batch is None:
                break
            self._ahead.append((to_devices(batch, self._sharding), self._stream.get_state()))
        if not self._ahead:
            raise StopIteration
        batch, self._state = self._ahead.popleft()
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the batch handed out last ends, not where reading ahead has come to."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position; what was read ahead is dropped."""
        self._ahead.clear()
        self._is_ahead = False
        self._stream.set_state(state)
        self._state = self._stream.get_state()

    def close(self) -> None:
        """Drops what was read ahead and stops reading; the next batch goes back for it."""
        self._is_ahead = self._is_ahead or bool(self._ahead)
        self._ahead.clear()
        self._stream.close()


def check_same_stream(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Checks that a saved position is one in the same data.

    Raises:
      ValueError: naming what differs.
    """
    names = sorted((saved.keys() | here.keys()) - {"batches"})
    differing = [
        f"{name} was {saved.get(name)!r} and is {here.get(name)!r}"
        for name in names
        if saved.get(name) != here.get(name)
    ]
    if differing or "batches" not in saved:
        raise ValueError(
            "cannot resume in the middle of other data: "
            f"{'; '.join(differing) or 'the position has no batches'}. Give what was given before, "
            "or start anew."
        )


class _Loader:
    """`loader(b)`: this process's rows of global batch `b`. Pickles."""

    def __init__(
        self,
        source: Any,
        num_examples: int,
        batch_size: int,
        seed: int | None,
        num_epochs: int | None,
        process_index: int,
        process_count: int,
    ):
        self.source, self.num_examples, self.batch_size = source, num_examples, batch_size
        self.seed, self.num_epochs = seed, num_epochs
        self.local_size = batch_size // process_count
        self.local_start = process_index * self.local_size
        self.name = _name_of(source)
        self._orders: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}

    @property
    def num_batches(self) -> int | None:
        if self.num_epochs is None:
            return None
        return -(-self.num_examples * self.num_epochs // self.batch_size)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def __call__(self, number: int) -> Batch:
        start = int(number) * self.batch_size + self.local_start
        stop = start + self.local_size
        if self.num_epochs is not None:
            stop = min(stop, self.num_examples * self.num_epochs)
        positions = np.arange(min(start, stop), stop)
        rows = self._rows(positions) if len(positions) else self._rows(np.zeros(1, np.int64))
        batch = self._read(rows)
        if not len(positions):
            # The last global batch may leave nothing for this process: shapes from any row.
            batch = batch._replace(weights=np.zeros_like(batch.weights))
        return pad_batch(batch, self.local_size)

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(positions, self.num_examples)
        if self.seed is None:
            return within
        rows = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._order(int(epoch))[within[here]]
        return rows

    def _order(self, epoch: int) -> np.ndarray:
        """NumPy promises that a bit generator's raw stream never changes; `permutation` may."""
        orders = self._orders  # Reading threads replace the dictionary, they never change it.
        if epoch in orders:
            return orders[epoch]
        bits = np.random.Philox(key=np.array([self.seed, epoch], np.uint64))
        order = np.argsort(bits.random_raw(self.num_examples), kind="stable")
        near = {e: o for e, o in orders.items() if abs(e - epoch) == 1}
        self._orders = {**near, epoch: order}
        return order

    def _read(self, rows: np.ndarray) -> Batch:
        source = self.source
        if isinstance(source, Dataset):
            weights = None if source.weights is None else source.weights[rows]
            item = (source.inputs[rows], source.targets[rows])
            return as_batch(item if weights is None else (*item, weights))
        if isinstance(source, View):
            return as_batch(source.arrays_at(rows))
        many = getattr(source, "__getitems__", None)
        items = [source[int(row)] for row in rows] if many is None else many(rows.tolist())
        items = [checked_item(item) for item in items]
        batch = as_batch(jax.tree.map(lambda *leaves: np.stack(leaves), *items))
        if isinstance(source, TfdsSource):
            check_labels(batch.targets, source, rows)
        return batch


def _name_of(source: Any) -> str:
    if isinstance(source, Dataset):
        return f"{source.name} {hash_of(source)}"
    return source.name if isinstance(source, TfdsSource | View) else type(source).__name__


def _import_grain() -> Any:
    hint = "anything iterable of (inputs, targets) streams without it: as_stream"
    return need("grain", what="streaming from a source", extra="data", hint=hint)


def _parse_absl_flags() -> None:
    """grain's workers read a flag of absl's, which only a parsed command line has."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
