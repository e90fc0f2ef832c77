"""What a training run shows and writes down beside its checkpoints: the banner, losses.csv, curves.png, a line of text, the closing block.

Nothing here changes a number of the run. `run` is train.py's Run.
"""
import csv
import dataclasses
import io
import math
import os
import platform
import resource
import sys

import torch

from lab.files import UserError, atomic_write
from model import chunk_size, parameter_counts
from sample import generate

COLUMNS = ["step", "tokens", "words", "lr", "train_loss", "val_loss", "blimp", "seconds"]


def write_curves(run):
    """losses.csv and curves.png, from the rows in memory: after a resume they hold no row twice."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.rows)
    atomic_write(os.path.join(run.config.out_dir, "losses.csv"), text.getvalue())
    if run.step == 0:                                                   # one point is no curve, and matplotlib takes a second to load
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for column, style in (("train_loss", {"alpha": 0.6, "linewidth": 0.8}), ("val_loss", {"marker": "o", "markersize": 3})):
        points = [(r["tokens"], r[column]) for r in run.rows if r[column] != ""]
        axes.plot(*zip(*points) if points else ([], []), label=column.replace("_", " "), **style)
    axes.set(xlabel="tokens", ylabel="loss, nats per token", title=f"{run.config.preset} on {run.meta['corpus']}")
    scored = [(r["tokens"], 100 * r["blimp"]) for r in run.rows if r["blimp"] != ""]
    if scored:
        right = axes.twinx()
        right.plot(*zip(*scored), color="tab:green", marker="s", markersize=3, label="minimal pairs, %")
        right.set_ylabel("accuracy on a subset of minimal pairs, %")
        right.legend(loc="lower left")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    atomic_write(os.path.join(run.config.out_dir, "curves.png"), png.getvalue())


class Log:
    """Sends the numbers of a run to TensorBoard or Weights & Biases. Neither is imported unless train.log asks for it."""

    def __init__(self, config, world):
        self.kind, self.writer, out = config.train.log if world.main else "none", None, config.out_dir
        try:
            if self.kind == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter
                self.writer = SummaryWriter(out)
            if self.kind == "wandb":
                import wandb
                self.writer = wandb.init(project="sllama-lab", name=out, dir=out, config=dataclasses.asdict(config))
        except ImportError:
            raise UserError(f"train.log: the package {self.kind} is not installed; pip install {self.kind}, or train.log=none") from None

    def __call__(self, step, **numbers):
        numbers = {name: value for name, value in numbers.items() if value != ""}
        if self.kind == "wandb":
            self.writer.log(numbers, step=step)
        elif self.kind == "tensorboard":
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, step)

    def close(self):
        if self.writer:
            (self.writer.finish if self.kind == "wandb" else self.writer.close)()


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"


def bits_per_byte(loss, counts):
    """Nats per token -> bits per byte of the text itself; counts: meta.json's {"tokens", "bytes"}."""
    return loss / math.log(2) * counts["tokens"] / counts["bytes"]


def parameter_table(config):
    """Lines: parameters by part, beside a plain untied LLaMA of the same shape, and what each trick saved."""
    plain = dataclasses.replace(config, embedding="full", attention="mha", mlp="full", layer_sharing="none", tie_word_embeddings=False, num_key_value_heads=None)
    ours, theirs = parameter_counts(config), parameter_counts(plain)
    tricks = {"embedding": config.embedding if not config.tie_word_embeddings else "tied to the head", "head": "",
              "attention": config.attention, "mlp": config.mlp, "norms": ""}
    lines = [f"{'parameters':<12}{'this model':>12}{'plain LLaMA':>13}{'saved':>12}"]
    for part in ours:
        note = tricks[part]
        if part in ("attention", "mlp", "norms") and config.layer_sharing != "none" and ours[part] < theirs[part]:
            note += f" layer_sharing {config.layer_sharing}"
        lines.append(f"{part:<12}{ours[part]:>12,}{theirs[part]:>13,}{theirs[part] - ours[part]:>12,}  {note}".rstrip())
    lines.append(f"{'total':<12}{sum(ours.values()):>12,}{sum(theirs.values()):>13,}{sum(theirs.values()) - sum(ours.values()):>12,}")
    return lines


def least_memory(run):
    """Bytes that a step needs at the least: {"weights, gradients, optimiser", "backward pass", "loss"}.

    A layer keeps for its backward pass, per token and with s bytes a number: input and output of both norms in float32 (16 h), the input, q, k, v
    and output of the attention, s (3 h + 2 h_kv), and the input, gate, up and two products of the MLP, s (h + 4 f). Gradient checkpointing keeps
    the input of each layer (4 h), and all of one layer at a time. The loss holds a chunk of logits and the gradients of both its factors.
    """
    m, s, size = run.config.model, run.config.train, run.dtype.itemsize
    h, f, kv = m.hidden_size, m.intermediate_size, m.hidden_size // m.num_attention_heads * (m.num_key_value_heads or m.num_attention_heads)
    tokens = s.batch_size // run.world.size * m.max_position_embeddings         # of one forward pass
    layer, layers = 16 * h + size * (4 * h + 2 * kv + 4 * f), m.num_hidden_layers
    kept = layers * 4 * h + layer if s.gradient_checkpointing else layers * layer
    states = sum(p.numel() * (8 if isinstance(o, torch.optim.AdamW) else 4) for o in run.optimizers for g in o.param_groups for p in g["params"])
    copies = 1 + (s.gradient_accumulation_steps > 1) + bool(run.ema)            # a single pass frees what it kept while its gradients come
    chunk = min(tokens, chunk_size(m.vocab_size, run.dtype, run.device)) * m.vocab_size * size
    return {"weights, gradients, optimiser": states + copies * 4 * sum(parameter_counts(m).values()), "backward pass": tokens * kept,
            "loss": chunk + 4 * h * (m.vocab_size + tokens)}


def device_memory(device):
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_lines(run):
    parts, has = least_memory(run), device_memory(run.device)
    least = sum(parts.values())
    lines = [f"memory: at least {least / 1e6:,.0f} MB ({', '.join(f'{part} {size / 1e6:,.0f}' for part, size in parts.items())})"
             + ("" if run.device.type == "cuda" else ", besides PyTorch itself and the text")]
    if least > has:
        lines.append(f"WARNING: the device has {has / 1e6:,.0f} MB in all; try train.gradient_checkpointing=true, "
                     "or half the train.batch_size and twice the train.gradient_accumulation_steps")
    return lines


def speed(run):
    """Tokens per second of the steps so far, the first few aside; None before there are any."""
    return run.timed_tokens / run.timed_seconds if run.timed_seconds else None


def outlook(run, elapsed):
    """How long the rest takes at the speed so far, `elapsed` being the seconds of the last step."""
    rate = speed(run) or run.tokens_per_step / elapsed
    left = (run.steps - run.step) * run.tokens_per_step / rate
    span = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min" if left < 7200 else f"{left / 3600:.1f} h"
    text = f"about {span} to go at {rate:,.0f} tokens/s, validation not counted"
    if left > 3600 and run.device.type == "cpu":
        text += "; for a first look, --preset quick takes minutes (prepare.py, train.py and eval_blimp.py all know it)"
    return text


def banner(run, last_rate):
    s, m, epoch = run.config.train, run.config.model, len(run.train_data)
    warmup = s.warmup if s.warmup >= 1 else s.warmup * run.steps
    lines = [f"preset {run.config.preset} on {run.meta['corpus']}: {run.meta['train']['words']:,} words, {run.meta['train']['tokens']:,} tokens, vocabulary {m.vocab_size:,}",
             *parameter_table(m),
             f"device {device_name(run.device)}; {str(run.dtype).removeprefix('torch.')}{' with gradient scaler' if run.scaler.is_enabled() else ''}; "
             f"compile {'on' if run.compiled else 'off'}; checkpointing {'on' if s.gradient_checkpointing else 'off'}; processes {run.world.size}",
             f"{run.steps:,} steps of {run.windows_per_step} windows x {m.max_position_embeddings} = {run.tokens_per_step:,} tokens; "
             f"{run.steps * run.windows_per_step / epoch:.2f} epochs of {epoch / run.windows_per_step:.1f} steps and {run.meta['train']['words']:,} words; "
             f"{run.words(run.steps):,.0f} words seen",
             *memory_lines(run)]
    for o in run.optimizers:
        for g in o.param_groups:
            size = sum(p.numel() for p in g["params"])
            lines.append(f"{type(o).__name__}: {len(g['params'])} tensors, {size:,} parameters, peak learning rate {g['peak']:g}, weight decay {g['weight_decay']:g}")
    if warmup >= run.steps:
        lines.append(f"WARNING: the warm-up of {warmup:.0f} steps is longer than the run of {run.steps}: the learning rate never reaches {s.learning_rate:g}, "
                     f"it ends at {last_rate:.2g}. train.warmup=0.05 would warm up over a twentieth of the run.")
    if run.vocab_changed:
        lines.append(f"notice: the prepared tokenizer has {m.vocab_size:,} pieces, not what tokenizer.vocab_size says; the model follows it")
    return lines


def written(run):
    """A line of text by the model as it is, to watch it learn."""
    if not run.config.train.sample_tokens:
        return ""
    run.model.eval()
    ids = [token for token, _ in generate(run.model, [run.tokenizer.bos_id], run.config.train.sample_tokens, seed=run.step, temperature=0.8)]
    return "\n    " + repr(run.tokenizer.decode([i for i in ids if i != run.tokenizer.bos_id]))


def closing_block(run, ended_by):
    """What the run came to, one greppable `key: value` a line."""
    trained = [r["train_loss"] for r in run.rows if r["train_loss"] != ""]
    lines = {"steps": run.step, "tokens": run.step * run.tokens_per_step, "words": round(run.words(run.step)),
             "train_loss": f"{trained[-1] if trained else math.nan:.6f}", "val_loss": f"{run.best:.6f}", "val_bits_per_byte": f"{bits_per_byte(run.best, run.meta['val']):.6f}",
             "tokens_per_second": f"{speed(run) or math.nan:.0f}", "seconds": f"{run.seconds:.1f}",
             "peak_memory_mb": f"{peak_memory_mb(run.device):.0f}", "skipped_steps": run.skipped, "corpus": run.meta["corpus"],
             "checkpoint": os.path.join(run.config.out_dir, "ckpt.pt")}
    text = "\n".join(f"{key}: {value}" for key, value in lines.items())
    if ended_by:
        text = f"stopped at step {run.step} of {run.steps}; the same command continues from {os.path.join(run.config.out_dir, 'last.pt')}\n" + text
    return text


def peak_memory_mb(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
