"""A preset's training step on random tokens: its speed, memory and products, and how close to the machine they come.

    python -m bench.speed.step --preset sllama train.gradient_accumulation_steps=1           # a minute
    python -m bench.speed.step --preset llama-66m --loss plain train.gradient_checkpointing=false
    python -m bench.speed.step --preset llama-66m train.device=cuda train.compile=true

`plain` is F.cross_entropy on all logits at once, (tokens x vocabulary). Memory is the most that the process held,
Python and PyTorch (0.3 GB) included; on a GPU what PyTorch allocated. MFU (Chowdhery et al. 2022) is the FLOPs of the
matrix products over time and peak, with only the causal half of attention and nothing that checkpointing computes
again; the peak is the data sheet's, else that of the fastest product found here.
"""

import argparse
import statistics
import time

from bench.common import in_turns, random_ids, show, training_step
from lab import cli, devices, settings
from model import Model, sharing
import train

import torch
import torch.nn.functional as F

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s in bfloat16, dense, of the data sheets


def model_flops(c):
    """{part: FLOPs of its matrix products per token, forward and backward}, in closed form.

    A product of k numbers is 2k FLOPs, and its backward pass is two such products.
    """
    h, f, T = c.hidden_size, c.intermediate_size, c.max_position_embeddings
    e = h if c.embedding == "full" else h // c.embedding_factor  # width of the embedding's rows
    kv = (c.num_key_value_heads or c.num_attention_heads) * (h // c.num_attention_heads)
    layers = len(sharing(c)[2])  # that are run, shared or not
    seen = (T + 1) / 2  # tokens that a token attends to, on average
    embedding = {"linear": e * h, "attention": 2 * e * e + e * h + (e + h) * seen}
    attention = {
        "mha": 2 * h * h + 2 * h * kv,
        "skqa": 3 * h * h,
        "pwa": h * (h + 2 * kv),
        "rra": (2 * h * h + 2 * h * kv) / 4,
    }
    return {
        "embedding": 6 * embedding.get(c.embedding, 0),
        "attention matrices": 6 * layers * attention[c.attention],
        "attention": 12 * layers * h * seen,
        "MLP": 18 * layers * h * f,
        "head": 6 * h * c.vocab_size,
    }


def peak_flops(device, dtype):
    """FLOP/s: the data sheet's, else of the fastest product of three sizes."""
    name = devices.device_name(device)
    for model, rate in PEAKS.items():
        if model in name and dtype == torch.bfloat16:
            return rate
    found = []
    for size in (512, 1024, 2048):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        times = in_turns({"product": lambda a=a, b=b: (a @ b).sum().item()}, rounds=5)["product"]
        found.append(2 * size**3 / min(times))
    return max(found)


def plain_loss(model, x, targets):
    """Model.loss with a (tokens x vocabulary) tensor."""
    return F.cross_entropy(model.lm_head(x).flatten(0, 1), targets.flatten())


def make_step(config, loss=Model.loss):
    """A function that trains a new model by one step on random tokens and returns the loss; device, dtype."""
    c, s = config.model, config.train
    device = devices.pick_device(s.device)
    dtype = devices.pick_precision(device, s.dtype)
    if device.type == "cpu":
        devices.keep_freed_memory(12 if s.gradient_checkpointing else None)  # as train.py does
    torch.manual_seed(0)
    model = Model(c).to(device).train()
    hidden = torch.compile(model.hidden) if s.compile is True else model.hidden
    optimizers = train.make_optimizers(model, s, device)
    T = c.max_position_embeddings
    passes = [random_ids(i, s.batch_size, T, c.vocab_size).to(device) for i in range(s.gradient_accumulation_steps)]

    def loss_of(ids):
        return loss(model, hidden(ids, checkpointing=s.gradient_checkpointing), ids)

    return lambda: training_step(loss_of, passes, model.parameters(), optimizers, dtype), device, dtype


def measure(config, loss=Model.loss, steps=6):
    """Trains that many steps; returns the figures, the first step's time by itself."""
    s = config.train
    step, device, dtype = make_step(config, loss)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        last = step()
        seconds.append(time.perf_counter() - start)
    tokens = s.gradient_accumulation_steps * s.batch_size * config.model.max_position_embeddings
    rate = tokens / statistics.median(seconds[1:])
    flops, peak = sum(model_flops(config.model).values()), peak_flops(device, dtype)
    return {
        "preset": config.preset,
        "device": devices.device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "compiled": s.compile is True,
        "torch": torch.__version__,
        "tokens_per_second": round(rate),
        "first_step_seconds": round(seconds[0], 2),
        "peak_memory_mb": round(devices.peak_memory_mb(device)),
        "model_flops_per_token": round(flops),
        "peak_flops": round(peak),
        "mfu": round(rate * flops / peak, 4),
        "loss": last,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--loss", default="ours", choices=["ours", "plain"])
    parser.add_argument("--steps", type=int, default=6, help="the first does not count in the speed")
    args, config = settings.parse_args(parser, argv)
    show(measure(config, plain_loss if args.loss == "plain" else Model.loss, args.steps))


if __name__ == "__main__":
    cli.run(main)
