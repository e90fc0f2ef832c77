"""Whole training steps per second, beside a peer: same shape, weights, batches, optimiser and precision, alternating in one run.

    python bench/throughput.py --preset llama-26m --batch 4                               # peer: transformers' LlamaForCausalLM, SDPA
    python bench/throughput.py --preset sllama --batch 32 --released PATH                 # peer: the released SLlama code (ovasoft/sllama in PATH, transformers 4.46.3)
    python bench/throughput.py --preset llama-26m --batch 1 --curve                       # only the losses, of 100 steps, in float32 and bfloat16

A step is forward, loss, backward, clipping and AdamW. Each round runs --steps steps of one, then of the other, and the next round begins with
the other; the ratio of the rounds is printed as min / median / max, by the time of day and by the processor's time, which other programs on
the machine hardly change. Both get the same windows of T tokens and are scored on T - 1. Windows are of data/NAME, or random ids.
"""
import argparse
import json
import os
import platform
import statistics
import sys
import time

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import config as configuration
import progress
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


def contestants(config, released, device, dtype, compiled):
    """{"ours", "peer"}: functions that take windows (B, T) through one training step and return the loss; from the same weights."""
    torch.manual_seed(0)
    model = Model(config).to(device)
    peer = peer_model(config, released).to(device)
    copy_weights(model, peer)
    hidden = torch.compile(model.hidden) if compiled else model.hidden

    def our_loss(ids):
        return model.loss(hidden(ids), torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100))

    def peer_loss(ids):
        return peer(input_ids=ids, labels=ids).loss

    def stepper(network, loss_of):
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

        def step(ids):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = loss_of(ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()
        return step
    return {"ours": stepper(model, our_loss), "peer": stepper(peer, peer_loss)}


def alternate(step, batch, rounds, steps):
    """(losses, seconds, processor seconds), each {"ours": [...], "peer": [...]}; the first round warms up and is not timed."""
    losses, wall, processor = ({"ours": [], "peer": []} for _ in range(3))
    for r in range(rounds + 1):
        for who in ("ours", "peer")[::1 if r % 2 else -1]:
            start = time.perf_counter(), time.process_time()
            losses[who] += [step[who](batch(r * steps + i)) for i in range(steps)]
            if r:
                wall[who].append(time.perf_counter() - start[0])
                processor[who].append(time.process_time() - start[1])
    return losses, wall, processor


def gap(losses):
    return max(abs(a - b) for a, b in zip(losses["ours"], losses["peer"]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--released", metavar="PATH", help="folder of the released SLlama code, to be the peer")
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per round of each")
    parser.add_argument("--curve", type=int, nargs="?", const=100, metavar="N", help="compare the losses of N steps (default: 100) in float32 and bfloat16, and time nothing")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the processor (default: PyTorch's)")
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--json", help="also write the figures here")
    args, config = configuration.parse_args(parser, argv)
    device, T = torch.device(args.device), config.model.max_position_embeddings
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == "cpu":
        train.keep_freed_memory()                                       # of the process, so the peer gains from it too
    try:
        tokens = np.fromfile(os.path.join(config.data_dir, "train.bin"), dtype="<u2").astype(np.int64)
        source = config.data_dir if tokens.max() < config.model.vocab_size else None
    except OSError:
        source = None
    if not source:
        tokens = np.random.default_rng(0).integers(3, config.model.vocab_size, 10**6)

    def batch(step):
        starts = np.random.default_rng(step).integers(0, len(tokens) - T, args.batch)
        return torch.from_numpy(tokens[starts[:, None] + np.arange(T)]).to(device)

    peer = "released SLlama" if args.released else "transformers LlamaForCausalLM"
    step = contestants(config.model, args.released, device, getattr(torch, args.dtype), args.compile) if not args.curve else None
    import transformers
    result = {"preset": config.preset, "peer": f"{peer}, transformers {transformers.__version__}", "torch": str(torch.__version__),
              "python": platform.python_version(), "device": progress.device_name(device), "threads": torch.get_num_threads(), "compiled": args.compile,
              "batch": args.batch, "window": T, "tokens_from": source or "random ids"}
    if args.curve:
        for dtype in ("float32", "bfloat16"):
            step = contestants(config.model, args.released, device, getattr(torch, dtype), args.compile)
            losses = alternate(step, batch, 0, args.curve)[0]
            result[f"steps_{dtype}"], result[f"largest_loss_difference_{dtype}"] = args.curve, gap(losses)
            result[f"losses_{dtype}"] = [losses["ours"][0], losses["ours"][-1]]
    else:
        losses, wall, processor = alternate(step, batch, args.rounds, args.steps)
        done = args.steps * args.batch * T
        result |= {"dtype": args.dtype, "rounds": args.rounds, "steps_per_round": args.steps,
                   "tokens_per_second": {who: round(done / statistics.median(v)) for who, v in wall.items()}}
        for key, times in {"ratio": wall, **({"processor_ratio": processor} if device.type == "cpu" else {})}.items():
            ratio = [theirs / ours for ours, theirs in zip(times["ours"], times["peer"])]
            result[f"{key}_min_median_max"] = [round(f(ratio), 2) for f in (min, statistics.median, max)]
        result |= {"largest_loss_difference": gap(losses), "last_loss": losses["ours"][-1]}
    for key, value in result.items():
        print(f"{key}: {value}")
    if args.json:
        configuration.atomic_write(args.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    configuration.run(main)
