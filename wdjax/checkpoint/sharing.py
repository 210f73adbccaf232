"""One process reads, all of them get what it read."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from wdjax.checkpoint.leaves import as_leaf, data_of, described, named_leaves
from wdjax.checkpoint.manifest import DamagedCheckpointError, Restored
from wdjax.writing import json_bytes


def share_from_first_process(read: Callable[[], Restored], like: PyTree) -> Restored:
    """What process 0 read, on every process; its refusal, too. Bytes: a sum would lose -0.0.

    Args:
      read: called on process 0 alone.
      like: a state of the structure, shapes and dtypes that `read` gives.

    Raises:
      FileNotFoundError: on every process, if `read` raised one: there is no checkpoint.
      CheckpointError: if `read` raised one; on the other processes a `DamagedCheckpointError` of
        the same text. Likewise for any other error of `read`.
      ValueError: if `read` raised one: a checkpoint of another structure.
    """
    from jax.experimental import multihost_utils

    found, error, head = None, None, {}
    if is_first_process():
        try:
            found = read()
            head = {"step": found.step, "facts": found.facts}
        except Exception as refusal:  # Whatever it is: the others wait for a word.
            error = refusal
            head = {"error": str(refusal), "kind": type(refusal).__name__}
    head = facts_of_first_process(head)
    if "error" in head:
        kinds = {kind.__name__: kind for kind in (FileNotFoundError, ValueError)}
        raise error or kinds.get(head["kind"], DamagedCheckpointError)(head["error"])
    leaves = []
    for number, (_, leaf) in enumerate(named_leaves(like)):
        about = described(leaf)
        shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        array = np.zeros(shape, dtype)
        if found is not None:
            array = np.asarray(data_of(jax.tree.leaves(found.state)[number]))
        sent = np.frombuffer(array.tobytes(), np.uint8)
        if sent.size:
            sent = np.asarray(multihost_utils.broadcast_one_to_all(sent))
        leaves.append(as_leaf(np.frombuffer(sent.tobytes(), dtype).reshape(shape), leaf))
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Restored(head["step"], state, head["facts"])


def facts_of_first_process(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts, plain JSON, that process 0 was called with, on every process."""
    from jax.experimental import multihost_utils

    words = np.frombuffer(json_bytes(facts), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(words))))
    words = words if is_first_process() else np.zeros(length, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(words)).tobytes())


def is_first_process() -> bool:
    """Whether this process is the one that touches the folder."""
    return jax.process_index() == 0
