"""What keeps the lessons safe and comfortable, a drawer for each: it changes no number, and nobody reads it first.

text/    for prepare.py: where text comes from, cleaning on all cores, Pocket English
run/     for train.py: the surroundings of a run, its data, Muon, mntp, resume, progress
score/   for eval_blimp.py: minimal pairs, models of others, n-grams, fast scoring, statistics, surprisal
report/  tables and the HTML page, plots: what score/ made, and the curves of a run
hub/     for export.py: what stands beside the weights in a Hugging Face folder, the BabyLM challenge
play.py  a page to play with a model, a command that stands above them all
settings.py, corpus.py, checkpoint.py, devices.py, files.py, cli.py: what all of them share

Imports go from a lesson to its drawer and from there to what is shared. Two exceptions: report/ and hub/ read what
score/ made, and run/ has report/ draw its curves.
"""

from lab import cli  # noqa: F401  before anything that takes long to import
