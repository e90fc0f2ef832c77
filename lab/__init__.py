"""What keeps the lessons safe and comfortable, a drawer for each: it changes no number, and nobody reads it first.

text/    for prepare.py: where text comes from, cleaning, the corpus on disk, Pocket English
run/     for train.py: the surroundings of a run, its data, devices and processes, Muon, mntp, resume, progress
score/   for eval_blimp.py: minimal pairs, models of others, n-grams, fast scoring, statistics, surprisal
report/  tables, the HTML page, plots: what score/ made, and the curves of a run
hub/     for export.py: tokenizer files, the model card, a BabyLM submission
play.py  a page to play with a model, a command that stands above them all
settings.py, checkpoint.py, files.py, cli.py: what all of them share
"""

from lab import cli  # noqa: F401  before anything that takes long to import
