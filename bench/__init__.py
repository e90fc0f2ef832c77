"""Every figure in README.md and RESULTS.md has its script here. Run from the checkout: python -m bench.speed.loss"""
