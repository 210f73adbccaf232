"""Bad input of every kind, drawn from a seed: each ends in one sentence, or runs.

python -m tests.fuzz --count 10000          # a summary by command and by what was bad
python -m tests.fuzz --seed 1234            # one case again, with all that it printed
"""
