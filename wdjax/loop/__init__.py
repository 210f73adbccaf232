"""A long run, batch by batch: the loop, its watchdog, its signals and its log."""

from wdjax.loop.evaluation import Evaluate as Evaluate
from wdjax.loop.evaluation import make_evaluate as make_evaluate
from wdjax.loop.log import Board as Board
from wdjax.loop.log import RunLog as RunLog
from wdjax.loop.log import write_tensorboard as write_tensorboard
from wdjax.loop.settings import Evaluation as Evaluation
from wdjax.loop.settings import Logging as Logging
from wdjax.loop.settings import Saving as Saving
from wdjax.loop.signals import Preempted as Preempted
from wdjax.loop.train_loop import NonFiniteError as NonFiniteError
from wdjax.loop.train_loop import TrainLoop as TrainLoop
from wdjax.loop.tune_loop import TunedState as TunedState
from wdjax.loop.tune_loop import TuneLoop as TuneLoop
from wdjax.loop.watchdog import HangWatch as HangWatch
