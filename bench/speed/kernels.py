"""How many kernels a GPU would start in a training step, and how often the CPU would wait for it; needs no GPU.

    python -m bench.speed.kernels [--preset sllama --preset llama-26m] [train.optimizer=muon] [--names]     # a minute

A real step of train.py runs on tensors that have shapes and no numbers (tests/fakeguard.py). Counted is each call that
computes something on the device; attention, RMSNorm and SiLU count once, as they do there. torch.compile joins others,
so the count is an upper bound.
"""

import argparse
import collections
import functools
import sys
import tempfile
import types

from lab import settings
from lab.devices import Distributed
from model import Model
from tests import fakeguard
import train

import torch


def count(config, dtype, device):
    """{part: Watch} of a micro-batch's forward, loss and backward, and of a whole step."""
    s = config.train
    model = fakeguard.build(Model, config.model, device)
    optimizers = train.make_optimizers(model, s, device)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    autocast = functools.partial(torch.autocast, "cuda", dtype, enabled=dtype != torch.float32)
    ids = torch.zeros(s.batch_size, config.model.max_position_embeddings, dtype=torch.int64, device=device)
    parts = collections.defaultdict(fakeguard.Watch)
    with parts["forward"], autocast():
        x = model.hidden(ids, checkpointing=s.gradient_checkpointing)
    with parts["loss"], autocast():
        loss = model.loss(x, ids)
    with parts["backward"]:
        loss.backward()
    model.zero_grad()
    run = types.SimpleNamespace(config=config, autocast=autocast, distributed=Distributed())
    batches = [(ids, ids, None)] * s.gradient_accumulation_steps
    for part in ("first step", "step"):  # the first makes the optimisers' states
        with parts[part]:
            loss = train.compute_gradients(model, model.hidden, batches, scaler, run)
            train.update_weights(model, optimizers, scaler, loss, 1.0, run)
    return parts


def report(presets, overrides, dtype, names):
    with fakeguard.fake_cuda() as device:
        for preset in presets:
            config = settings.load_config(preset, overrides)
            parts = count(config, getattr(torch, dtype), device)
            kernels = {part: watch.kernels.total() for part, watch in parts.items()}
            forward, loss, backward, step = (kernels[part] for part in ("forward", "loss", "backward", "step"))
            micro_batch = forward + loss + backward
            optimizer = step - micro_batch * config.train.gradient_accumulation_steps
            print(
                f"{preset}: {dtype}: forward {forward}, loss {loss}, backward {backward}: {micro_batch} kernels a "
                f"micro-batch; optimiser {optimizer}; {step} kernels and {parts['step'].syncs.total()} syncs a step",
                flush=True,
            )
            for part, watch in parts.items():
                if names:
                    print(f"  {part}: {', '.join(f'{name} {n}' for name, n in watch.kernels.most_common())}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", action="append", help="may be given several times (default: sllama, llama-26m)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--names", action="store_true", help="which kernels they are")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args(argv)
    if args.inside:
        return report(args.preset or ["sllama", "llama-26m"], args.overrides, args.dtype, args.names)
    if reason := fakeguard.why_not():
        sys.exit(f"error: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        arguments = sys.argv[1:] if argv is None else argv
        return fakeguard.start(["-m", "bench.speed.kernels", "--inside", *arguments], folder).returncode


if __name__ == "__main__":
    sys.exit(main())
