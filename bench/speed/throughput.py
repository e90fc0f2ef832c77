"""Whole training steps per second, beside a peer: same shape, weights, batches, optimiser and precision, in turns.

    python -m bench.speed.throughput --preset llama-26m --batch 4                   # peer: LlamaForCausalLM with SDPA
    python -m bench.speed.throughput --preset sllama --batch 32 --released PATH     # peer: ovasoft/sllama in PATH
    python -m bench.speed.throughput --preset llama-26m --batch 4 --nanogpt PATH    # peer: nanoGPT's model.py in PATH
    python -m bench.speed.throughput --preset llama-26m --batch 1 --curve           # only the losses of 100 steps

A step is forward, loss, backward, clipping and AdamW. Each round runs --steps steps of one, then of the other, and the
next round begins with the other; the ratio of the rounds is printed as min / median / max, by the time of day and by
the processor's time, which other programs on the machine hardly change. Both get the same windows of T tokens, of
data/NAME or random ids, and are scored on T - 1. Each runs in a process of its own: ours keeps its freed memory, as
train.py does, the peer is as its users run it, unless --same-allocator gives it that too and --compile both compiles
it. --curve compares float32 and bfloat16. The released code needs transformers 4.46.3. nanoGPT's model has the width,
depth and heads of ours, but learned positions and an MLP of two matrices, four times as wide as the model, so weights
and losses are its own.
"""

import argparse
from importlib import metadata
import importlib.util
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import time
from types import SimpleNamespace

from bench.common import min_median_max, write_json
from export import names
from lab import cli
from lab import settings as configuration
from lab.files import UserError
from lab.run import devices
from model import Model
import train

import numpy as np
import torch

PEERS = {"transformers": "transformers LlamaForCausalLM", "released": "released SLlama", "nanogpt": "nanoGPT"}


class NanoGPT(torch.nn.Module):
    """nanoGPT's model with the interface of transformers' models."""

    def __init__(self, config, folder):
        super().__init__()
        spec = importlib.util.spec_from_file_location("nanogpt", os.path.join(folder, "model.py"))
        nanogpt = sys.modules["nanogpt"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(nanogpt)
        self.gpt = nanogpt.GPT(
            nanogpt.GPTConfig(
                block_size=config.max_position_embeddings,
                vocab_size=config.vocab_size,
                n_layer=config.num_hidden_layers,
                n_head=config.num_attention_heads,
                n_embd=config.hidden_size,
                dropout=0.0,
                bias=False,
            )
        )

    def forward(self, input_ids, labels):
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-1)
        return SimpleNamespace(loss=self.gpt(input_ids, targets)[1])


def peer_model(config, kind, folder):
    """The peer, built from the same settings; all take labels = ids and shift them themselves."""
    if kind == "nanogpt":
        return NanoGPT(config, folder)
    shape = dict(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        use_cache=False,
    )
    if kind == "transformers":
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa"))
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
    return SLLamaForCausalLM(SLLamaConfig(**shape, **tricks))


def copy_weights(ours, peer):
    """Gives the peer our weights, so that the two loss curves can be compared."""
    held = dict(ours.named_parameters())
    source = {theirs: held[our] for our, many in names(ours.config).items() for theirs in many}
    with torch.no_grad():
        for name, p in peer.named_parameters():
            p.copy_(source[name].view_as(p))


def build(who, config, peer, device, dtype, compiled):
    """A function that takes windows (B, T) through one training step of "ours" or the "peer" and returns the loss.

    peer: its kind and folder. Both start from the same weights, but for nanoGPT's, and follow the preset's schedule (of
    1000 steps, if it is one in epochs).
    """
    torch.manual_seed(0)
    model = Model(config.model).to(device)
    if who == "ours":
        network, hidden = model, torch.compile(model.hidden) if compiled else model.hidden
    else:
        network = peer_model(config.model, *peer).to(device)
        if peer[0] != "nanogpt":
            copy_weights(model, network)
        forward = torch.compile(network) if compiled == "both" else network
        del model
    s, steps = config.train, itertools.count()
    optimizer = torch.optim.AdamW(network.parameters(), betas=tuple(s.betas), weight_decay=s.weight_decay, fused=True)

    def step(ids):
        optimizer.param_groups[0]["lr"] = s.learning_rate * train.schedule(next(steps), s, s.max_steps or 1000)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if who == "ours":
                targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
                loss = network.loss(hidden(ids), targets)
            else:
                loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def serve(pipe, who, device, same_allocator, threads, config, peer, dtype, compiled):
    """A process of its own: takes lists of batches, sends back (losses, seconds, processor seconds)."""
    torch.set_num_threads(threads)
    if device.type == "cpu" and (who == "ours" or same_allocator):
        devices.keep_freed_memory()  # as train.py does
    step = build(who, config, peer, device, dtype, compiled)
    while (batches := pipe.recv()) is not None:
        wall, processor = time.perf_counter(), time.process_time()
        losses = [step(torch.from_numpy(ids).to(device)) for ids in batches]
        pipe.send((losses, time.perf_counter() - wall, time.process_time() - processor))


def in_turns(device, batch, rounds, steps, *settings):
    """(losses, seconds, processor seconds), each {"ours": [...], "peer": [...]}; the first round is not timed."""
    kind = "fork" if device.type == "cpu" else "spawn"  # fork is quicker, and CUDA does not allow it
    context, pipes = multiprocessing.get_context(kind), {}
    for who in ("ours", "peer"):
        pipes[who], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, who, device, *settings), daemon=True).start()
        theirs.close()  # so that its end is noticed here
    losses, wall, processor = ({"ours": [], "peer": []} for _ in range(3))
    try:
        for r in range(rounds + 1):
            batches = [batch(r * steps + i) for i in range(steps)]
            for who in ("peer", "ours") if r % 2 else ("ours", "peer"):
                pipes[who].send(batches)
                found, seconds, used = pipes[who].recv()
                losses[who] += found
                if r:
                    wall[who].append(seconds)
                    processor[who].append(used)
    except EOFError:
        raise UserError("a contestant ended; its own message says why") from None
    for pipe in pipes.values():
        pipe.send(None)
    return losses, wall, processor


def largest_difference(one, other):
    return max(abs(a - b) for a, b in zip(one, other))


def curve_result(curves):
    """How far the losses of ours and the peer are apart; curves: {dtype: {"ours": [...], "peer": [...]}}.

    Beside it, how far bfloat16 leads each from its own float32: what to hold the difference against.
    """
    result = {}
    for dtype, losses in curves.items():
        result[f"largest_loss_difference_{dtype}"] = largest_difference(losses["ours"], losses["peer"])
        result[f"mean_loss_difference_{dtype}"] = statistics.mean(losses["ours"]) - statistics.mean(losses["peer"])
    for who in ("ours", "peer"):
        result[f"largest_difference_bfloat16_float32_{who}"] = largest_difference(
            curves["float32"][who], curves["bfloat16"][who]
        )
    losses = curves["float32"]["ours"]
    return result | {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1], "curves": curves}


def ratios(seconds):
    return min_median_max([theirs / ours for ours, theirs in zip(seconds["ours"], seconds["peer"])])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--released", metavar="PATH", help="folder of the released SLlama code, to be the peer")
    parser.add_argument("--nanogpt", metavar="PATH", help="folder of nanoGPT's model.py, to be the peer")
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per round of each")
    parser.add_argument(
        "--curve",
        type=int,
        nargs="?",
        const=100,
        metavar="N",
        help="compare the losses of N steps (default: 100), and time nothing",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the processor (default: PyTorch's)")
    parser.add_argument("--compile", choices=["ours", "both"], help="torch.compile for ours, or for the peer too")
    parser.add_argument(
        "--same-allocator", action="store_true", help="also let the peer keep its freed memory, as train.py does (CPU)"
    )
    parser.add_argument("--json", help="also write the figures here")
    args, config = configuration.parse_args(parser, argv)
    device, T = torch.device(args.device), config.model.max_position_embeddings
    kind = "released" if args.released else "nanogpt" if args.nanogpt else "transformers"
    folder = args.released or args.nanogpt
    threads = args.threads or torch.get_num_threads()
    try:
        tokens = np.fromfile(os.path.join(config.data_dir, "train.bin"), dtype="<u2").astype(np.int64)
        source = config.data_dir if tokens.max() < config.model.vocab_size else None
    except OSError:
        source = None
    if not source:
        tokens = np.random.default_rng(0).integers(3, config.model.vocab_size, 10**6)

    def batch(step):
        starts = np.random.default_rng(step).integers(0, len(tokens) - T, args.batch)
        return tokens[starts[:, None] + np.arange(T)]  # (batch, T)

    def run(rounds, steps, dtype):
        settings = args.same_allocator, threads, config, (kind, folder), getattr(torch, dtype), args.compile
        return in_turns(device, batch, rounds, steps, *settings)

    result = {
        "preset": config.preset,
        "peer": f"{PEERS[kind]}, transformers {metadata.version('transformers')}",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": devices.device_name(device),
        "threads": threads,
        "compiled": args.compile or "none",
        "our_allocator_for_both": args.same_allocator,
        "batch": args.batch,
        "window": T,
        "tokens_from": source or "random ids",
    }
    if args.curve:
        result |= curve_result({dtype: run(0, args.curve, dtype)[0] for dtype in ("float32", "bfloat16")})
    else:
        losses, wall, processor = run(args.rounds, args.steps, args.dtype)
        tokens_a_round = args.steps * args.batch * T
        result |= {
            "dtype": args.dtype,
            "rounds": args.rounds,
            "steps_per_round": args.steps,
            "tokens_per_second": {who: round(tokens_a_round / statistics.median(v)) for who, v in wall.items()},
            "ratio_min_median_max": ratios(wall),
        }
        if device.type == "cpu":
            result["processor_ratio_min_median_max"] = ratios(processor)
        result["largest_loss_difference"] = largest_difference(losses["ours"], losses["peer"])
        result["last_loss"] = losses["ours"][-1]
    for key, value in result.items():
        if key != "curves":
            print(f"{key}: {value}")
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    cli.run(main)
