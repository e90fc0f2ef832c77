"""Whole training steps per second, beside a peer: same shape, weights, batches, optimiser and precision, alternating in one run.

    python bench/throughput.py --preset llama-26m --batch 4                               # peer: transformers' LlamaForCausalLM, SDPA
    python bench/throughput.py --preset sllama --batch 32 --released PATH                 # peer: the released SLlama code (ovasoft/sllama in PATH, transformers 4.46.3)

A step is forward, loss, backward, clipping and AdamW. Each round runs --steps steps of ours, then of the peer; the ratio of the rounds is
printed as min / median / max, with the largest difference between the two loss curves. Batches are random windows of data/NAME, or random ids.
"""
import argparse
import json
import os
import statistics
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import config as configuration
import train
from export import names
from model import Model


def peer_model(config, released):
    """The peer, built from the same settings; both take labels = ids and shift them themselves."""
    plain = dict(vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
                 num_key_value_heads=config.num_key_value_heads or config.num_attention_heads, intermediate_size=config.intermediate_size,
                 max_position_embeddings=config.max_position_embeddings, rms_norm_eps=config.rms_norm_eps, tie_word_embeddings=config.tie_word_embeddings, use_cache=False)
    if released:
        sys.path.insert(0, released)
        from src.configuration_sllama import SLLamaConfig
        from src.modeling_sllama import SLLamaForCausalLM
        kinds = {"full": None, "none": None, "attention": "attn"}
        tricks = dict(emb_reduction_type=kinds.get(config.embedding, config.embedding), attn_reduction_type=config.attention, mlp_reduction=config.mlp != "full",
                      layer_reduction_type=kinds.get(config.layer_sharing, config.layer_sharing), n_group=config.num_groups)
        return SLLamaForCausalLM(SLLamaConfig(**plain, **tricks))
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(**plain, attn_implementation="sdpa"))


def copy_weights(ours, peer):
    """Gives the peer our weights, so that the two loss curves can be compared."""
    held = dict(ours.named_parameters())
    source = {theirs: held[our] for our, many in names(ours.config).items() for theirs in many}
    with torch.no_grad():
        for name, p in peer.named_parameters():
            p.copy_(source[name].view_as(p))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="llama-26m")
    parser.add_argument("--released", help="folder of the released SLlama code, to be the peer")
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per round of each")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args()
    config = configuration.load_config(args.preset)
    device, dtype, T = torch.device(args.device), getattr(torch, args.dtype), config.model.max_position_embeddings
    if device.type == "cpu":
        train.keep_freed_memory()                                       # of the process, so the peer gains from it too
    torch.manual_seed(0)
    model = Model(config.model).to(device)
    peer = peer_model(config.model, args.released).to(device)
    copy_weights(model, peer)
    hidden = torch.compile(model.hidden) if args.compile else model.hidden
    settings = dict(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    optimizers = {"ours": torch.optim.AdamW(model.parameters(), **settings), "peer": torch.optim.AdamW(peer.parameters(), **settings)}
    try:
        tokens = np.fromfile(os.path.join(config.data_dir, "train.bin"), dtype="<u2").astype(np.int64)
    except OSError:
        tokens = np.random.default_rng(0).integers(3, config.model.vocab_size, 10**6)

    def batch(step):
        starts = np.random.default_rng(step).integers(0, len(tokens) - T - 1, args.batch)
        return torch.from_numpy(tokens[starts[:, None] + np.arange(T + 1)]).to(device)

    def train_step(who, step):
        ids = batch(step)                                               # (B, T + 1)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model.loss(hidden(ids[:, :-1]), ids[:, 1:]) if who == "ours" else peer(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_((model if who == "ours" else peer).parameters(), 1.0)
        optimizers[who].step()
        optimizers[who].zero_grad()
        return loss.item()

    losses, speed = {"ours": [], "peer": []}, {"ours": [], "peer": []}
    for r in range(args.rounds + 1):                                    # the first round is a warm-up
        for who in ("ours", "peer"):
            start = time.perf_counter()
            losses[who] += [train_step(who, r * args.steps + i) for i in range(args.steps)]
            if r:
                speed[who].append(args.steps * args.batch * T / (time.perf_counter() - start))
    ratio = [a / b for a, b in zip(speed["ours"], speed["peer"])]
    gap = max(abs(a - b) for a, b in zip(losses["ours"], losses["peer"]))
    result = {"preset": args.preset, "peer": "released SLlama" if args.released else "transformers LlamaForCausalLM", "batch": args.batch, "window": T, "dtype": args.dtype,
              "threads": torch.get_num_threads(), "device": train.device_name(device), "torch": str(torch.__version__), "rounds": args.rounds, "steps_per_round": args.steps,
              "tokens_per_second": {who: round(statistics.median(v)) for who, v in speed.items()},
              "ratio_min_median_max": [round(f(ratio), 2) for f in (min, statistics.median, max)], "largest_loss_difference": gap, "last_loss": losses["ours"][-1]}
    for key, value in result.items():
        print(f"{key}: {value}")
    if args.json:
        configuration.atomic_write(args.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    configuration.run(main)
