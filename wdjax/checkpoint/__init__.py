"""Save and resume: whole checkpoints or none, every leaf known by its SHA-256 (arrays by orbax)."""

from wdjax.checkpoint.leaves import check_same_leaves as check_same_leaves
from wdjax.checkpoint.leaves import host_leaves as host_leaves
from wdjax.checkpoint.manifest import CheckpointError as CheckpointError
from wdjax.checkpoint.manifest import DamagedCheckpointError as DamagedCheckpointError
from wdjax.checkpoint.manifest import Restored as Restored
from wdjax.checkpoint.manifest import check_same_config as check_same_config
from wdjax.checkpoint.manifest import versions as versions
from wdjax.checkpoint.partial import LoadedLeaf as LoadedLeaf
from wdjax.checkpoint.partial import LoadReport as LoadReport
from wdjax.checkpoint.partial import load_pretrained as load_pretrained
from wdjax.checkpoint.store import Checkpoints as Checkpoints
from wdjax.checkpoint.store import read_leaves as read_leaves
