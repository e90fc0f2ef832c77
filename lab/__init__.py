"""What keeps the lessons safe and comfortable: a drawer for each lesson, and what the drawers share. Read it last.

text/       for prepare.py
    sources.py          where text and BLiMP come from: folders of files, downloads
    cleaning.py         the steps that data.clean names, on all cores
    pocket_english.py   a small grammar that writes a corpus and minimal pairs
run/        for train.py
    run.py              what surrounds a run: settings, processes, device, data, folder, signals, screen
    data.py             a corpus as windows of tokens, in an order that follows from the seed and the step
    muon.py             Muon, an optimiser for matrices
    resume.py           what a checkpoint records of its run, and how a run continues from one
    progress.py         losses.csv, curves.png, and what a run prints
score/      for eval_blimp.py
    pairs.py            folders of minimal pairs
    scorers.py          all that can be scored: our checkpoints, Hugging Face models, n-grams
    scoring.py          the rule in batches, and faster for our checkpoints
    statistics.py       accuracies, intervals, differences between two models
    surprisal.py        surprisal word by word
report/     for what score/ made
    tables.py           tables, CSV files, the HTML page
    plots.py            figures, and the curves of a run
hub/        for export.py
    folder.py           what stands beside the weights in a Hugging Face folder
    babylm.py           scores and checks for the BabyLM challenge
shared
    settings.py         config.yaml as typed settings
    corpus.py           a prepared corpus on disk
    checkpoint.py       files that hold weights and all that belongs to them
    devices.py          device, precision, compiler, memory, processes
    files.py            files written whole or not at all, and UserError
    cli.py              how every command begins and ends
    play.py             a page to play with a model

Imports go from a lesson to its drawer, and from there to what is shared. Two exceptions: report/ and hub/ read what
score/ made, and run/ has report/ draw its curves.
"""

from lab import cli  # noqa: F401  before anything that takes long to import
