"""All configurations that are audited, one a row of the table, in its order."""

from experiments.audits.language import LANGUAGE
from experiments.audits.vision import VISION

ROWS = VISION + LANGUAGE
