"""Whole training steps per second, beside a peer: same shape, weights, batches, optimiser and precision, in turns.

    python -m bench.speed.throughput --preset llama-26m --batch 4                   # peer: LlamaForCausalLM with SDPA
    python -m bench.speed.throughput --preset sllama --batch 32 --released PATH     # peer: ovasoft/sllama in PATH

A step is forward, loss, backward, clipping and AdamW, on windows of T random tokens, of which T - 1 are scored. A round
runs --steps steps of one, then of the other, and the next round begins with the other; printed are least / median /
most of the rounds' ratios. Each runs in a process of its own: ours keeps its freed memory, as train.py does, the peer
runs as its users run it, unless --same-allocator gives it that too and --compile both compiles it. The released code
needs transformers 4.46.3.
"""

import argparse
from importlib import metadata
import statistics
import sys

from bench.common import ask, contestant, in_turns, random_ids, show, spread, training_step
from export import our_name
from lab import cli, devices, settings
from model import Model

import torch
import torch.nn.functional as F

SHAPE = """vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size
max_position_embeddings rms_norm_eps tie_word_embeddings""".split()


def transformers_llama(shape, config, folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**shape, use_cache=False, attn_implementation="sdpa"))


def released_sllama(shape, config, folder):
    sys.path.append(folder)
    from src.configuration_sllama import SLLamaConfig
    from src.modeling_sllama import SLLamaForCausalLM

    their_names = {"full": None, "none": None, "attention": "attn"}
    tricks = dict(
        emb_reduction_type=their_names.get(config.embedding, config.embedding),
        attn_reduction_type=config.attention,
        mlp_reduction=config.mlp != "full",
        layer_reduction_type=their_names.get(config.layer_sharing, config.layer_sharing),
        n_group=config.num_groups,
    )
    return SLLamaForCausalLM(SLLamaConfig(**shape, **tricks, use_cache=False))


def peer_of(ours, folder):
    """The peer with our settings and our weights."""
    config = ours.config
    shape = {name: getattr(config, name) for name in SHAPE}
    peer = (released_sllama if folder else transformers_llama)(shape, config, folder)
    held = dict(ours.named_parameters())
    with torch.no_grad():
        for name, p in peer.named_parameters():
            p.copy_(held[our_name(name, config)].view_as(p))
    return peer


def serve(pipe, who, config, args):
    """A process of its own: for each seed that comes, takes --steps steps and sends their losses."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.set_num_threads(args.threads)
    if device.type == "cpu" and (who == "ours" or args.same_allocator):
        devices.keep_freed_memory()  # as train.py does
    torch.manual_seed(0)
    network = Model(config.model)
    if who == "ours":
        network.to(device)
        hidden = torch.compile(network.hidden) if args.compile else network.hidden

        def loss(ids):
            return network.loss(hidden(ids), F.pad(ids[:, 1:], (0, 1), value=-100))
    else:
        network = peer_of(network, args.released).to(device)
        forward = torch.compile(network) if args.compile == "both" else network

        def loss(ids):
            return forward(input_ids=ids, labels=ids).loss

    s, size = config.train, (args.batch, config.model.max_position_embeddings, config.model.vocab_size)
    adamw = torch.optim.AdamW(network.parameters(), 1e-4, tuple(s.betas), weight_decay=s.weight_decay, fused=True)
    while (seed := pipe.recv()) is not None:
        batches = [random_ids(seed + i, *size).to(device) for i in range(args.steps)]
        pipe.send([training_step(loss, [ids], network.parameters(), [adamw], dtype) for ids in batches])


def compete(config, args):
    """({"ours": seconds of each round, "peer": likewise}, {"ours": losses, "peer": losses})"""
    pipes = {who: contestant(serve, who, config, args) for who in ("ours", "peer")}
    losses = {"ours": [], "peer": []}

    def steps(who):
        losses[who] += ask(pipes[who], len(losses[who]))

    seconds = in_turns({"ours": lambda: steps("ours"), "peer": lambda: steps("peer")}, args.rounds)
    for pipe in pipes.values():
        pipe.send(None)
    return seconds, losses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--released", metavar="PATH", help="folder of the released SLlama code, to be the peer")
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per round of each")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor")
    parser.add_argument("--compile", choices=["ours", "both"], help="torch.compile for ours, or for the peer too")
    parser.add_argument("--same-allocator", action="store_true", help="the peer keeps its freed memory too (CPU)")
    args, config = settings.parse_args(parser, argv)
    seconds, losses = compete(config, args)
    tokens = args.steps * args.batch * config.model.max_position_embeddings
    peer = "released SLlama" if args.released else "transformers LlamaForCausalLM"
    ratios = [theirs / ours for theirs, ours in zip(seconds["peer"], seconds["ours"])]
    figures = {
        "preset": config.preset,
        "peer": f"{peer}, transformers {metadata.version('transformers')}",
        "torch": torch.__version__,
        "device": devices.device_name(torch.device(args.device)),
        "dtype": args.dtype,
        "compiled": args.compile or "none",
        "same_allocator": args.same_allocator,
        "our_tokens_per_second": round(tokens / statistics.median(seconds["ours"])),
        "their_tokens_per_second": round(tokens / statistics.median(seconds["peer"])),
        "times_as_fast": spread(ratios),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(losses["ours"], losses["peer"])),
    }
    show(figures)


if __name__ == "__main__":
    cli.run(main)
