"""The scripts behind the figures of README.md, RESULTS.md and results/: README.md here lists them."""
