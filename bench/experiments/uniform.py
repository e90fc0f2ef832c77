"""What a model that knows nothing scores: uniform logits, so only the length of a sentence counts, and equal ones tie.

    python -m bench.experiments.uniform --tokenizer tokenizer.model --data data/blimp_filtered

With SLlama's tokenizer (Llama 2's, 32,000 pieces) and the 59,875 pairs of the BabyLM challenge's filter, ties counted
as correct give 0.9194.
"""

import argparse

import eval_blimp
from lab import cli
from lab.score import pairs as blimp_pairs
from lab.score.scorers import Ours
from model import Model, ModelConfig
import tokenizer

import torch


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", default="data/blimp")
    args = parser.parse_args()
    tok = tokenizer.load(args.tokenizer)
    shape = dict(hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1)
    model = Model(ModelConfig(vocab_size=tok.vocab_size, **shape)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)  # every logit is 0
    result = eval_blimp.evaluate(Ours(model, tok), blimp_pairs.read_pairs(args.data)[0]).as_json()
    for key in ("accuracy", "accuracy_ties_half", "accuracy_ties_correct", "pairs", "ties"):
        print(f"{key}: {result[key]}")


if __name__ == "__main__":
    cli.run(main)
