"""The main jobs from data to results: choose a strength, train at one, draw a report again."""

from wdjax.checkpoint import CheckpointError as CheckpointError
from wdjax.data.table_files import TABLE_ENDINGS as TABLE_ENDINGS
from wdjax.decay import CONVENTIONS as CONVENTIONS
from wdjax.jobs.articles import RECIPES as RECIPES
from wdjax.jobs.articles import recipe_words as recipe_words
from wdjax.jobs.audit import run_audit as run_audit
from wdjax.jobs.compare import CompareOptions as CompareOptions
from wdjax.jobs.compare import run_compare as run_compare
from wdjax.jobs.convert import ConvertOptions as ConvertOptions
from wdjax.jobs.convert import run_convert as run_convert
from wdjax.jobs.options import AuditOptions as AuditOptions
from wdjax.jobs.options import SelectOptions as SelectOptions
from wdjax.jobs.options import TrainOptions as TrainOptions
from wdjax.jobs.predict import Predictor as Predictor
from wdjax.jobs.predict import load_predictor as load_predictor
from wdjax.jobs.predict import run_predict as run_predict
from wdjax.jobs.pretrained import read_pretrained as read_pretrained
from wdjax.jobs.results import run_report as run_report
from wdjax.jobs.resume import resumed_options as resumed_options
from wdjax.jobs.select import run_select as run_select
from wdjax.jobs.stream import run_stream as run_stream
from wdjax.jobs.train import run_train as run_train
from wdjax.jobs.transfer import TransferOptions as TransferOptions
from wdjax.jobs.transfer import run_transfer as run_transfer
from wdjax.jobs.verdict import summary as summary
from wdjax.loop.train_loop import NonFiniteError as NonFiniteError
