"""What a run shows and records beside its checkpoints: losses.csv, curves.png, lines, the closing block.

Nothing here changes a number of the run.
"""

import contextlib
import csv
import dataclasses
import importlib
import io
import math
import os
import time

from lab.files import UserError, atomic_write
from lab.settings import command_line
from model import parameter_counts

from tqdm import tqdm

COLUMNS = ["step", "tokens", "words", "lr", "train_loss", "val_loss", "blimp", "seconds"]
PLAIN = {"embedding": "full", "attention": "mha", "mlp": "full", "layer_sharing": "none", "tie_word_embeddings": False}
DEFAULT_PAIRS = "data/blimp"  # eval.data of config.yaml
SILENCE = 25  # seconds after which a run that is not on a terminal says something
LONG = 5e14  # parameters x tokens: four hours where 3 M parameters train at 12,000 tokens/s


def bits_per_byte(loss, counts):
    """Nats per token -> bits per byte of the text itself; counts: meta.json's {"tokens", "bytes"}."""
    return loss / math.log(2) * counts["tokens"] / counts["bytes"]


# ---------------------------------------------------------------------------------------------------------------------
# Before the first step


def parameter_table(config):
    """Lines: parameters by part, beside a plain untied LLaMA of the same shape, and what each trick saved."""
    ours = parameter_counts(config)
    theirs = parameter_counts(dataclasses.replace(config, **PLAIN, num_key_value_heads=None))
    notes = {"embedding": config.embedding, "attention": config.attention, "mlp": config.mlp}
    if config.tie_word_embeddings:
        notes["embedding"] = "tied to the head"
    if config.layer_sharing != "none":
        for part in ("attention", "mlp"):
            notes[part] += f", layer_sharing {config.layer_sharing}"
    ours["total"], theirs["total"] = sum(ours.values()), sum(theirs.values())
    lines = [f"{'parameters':<12}{'this model':>12}{'plain LLaMA':>13}{'saved':>12}"]
    for part, count in ours.items():
        saved = f"{theirs[part] - count:,}" if theirs[part] != count else "-"
        lines.append(f"{part:<12}{count:>12,}{theirs[part]:>13,}{saved:>12}  {notes.get(part, '')}".rstrip())
    return lines


def banner(run, finished=False):
    """The lines that a run starts with."""
    config, plan, train, step = run.config, run.plan, run.meta["train"], run.state.step
    s, m = config.train, config.model
    precision = run.provenance["dtype"] + (" with gradient scaler" if run.provenance["dtype"] == "float16" else "")
    lines = [
        f"preset {config.preset} on {run.meta['corpus']}: {train['words']:,} words, {train['tokens']:,} tokens, "
        f"vocabulary {m.vocab_size:,}",
        *parameter_table(m),
        f"device {run.provenance['device']}; {precision}; compile {'on' if run.compiled else 'off'} ({run.why}); "
        f"gradient checkpointing {'on' if s.gradient_checkpointing else 'off'}; processes {run.distributed.size}",
        f"{plan.steps:,} steps of {plan.windows_per_step} windows x {m.max_position_embeddings} = "
        f"{plan.tokens_per_step:,} tokens; {plan.steps * plan.epochs_per_step:.2f} epochs of "
        f"{1 / plan.epochs_per_step:.1f} steps and {train['words']:,} words; {plan.words(plan.steps):,.0f} words seen",
    ]
    warmup = s.warmup if s.warmup >= 1 else s.warmup * plan.steps
    if warmup >= plan.steps:
        lines.append(
            f"WARNING: the warm-up of {warmup:.0f} steps is longer than the run of {plan.steps}: the learning "
            f"rate never reaches {s.learning_rate:g}, it ends at {s.learning_rate * plan.steps / warmup:.2g}. "
            "train.warmup=0.05 would warm up over a twentieth of the run."
        )
    if m.vocab_size != config.tokenizer.vocab_size and not config.tokenizer.model:
        lines.append(
            f"notice: the prepared tokenizer has {m.vocab_size:,} pieces, not what tokenizer.vocab_size says; "
            "the model follows it"
        )
    work = sum(parameter_counts(m).values()) * plan.steps * plan.tokens_per_step
    if run.device.type == "cpu" and work > LONG:
        lines.append(
            "notice: this takes hours on a CPU; for a first look, --preset quick takes minutes (prepare.py, train.py "
            "and eval_blimp.py all know it)"
        )
    lines += [f"changed {line}" for line in run.state.changes]
    if finished:
        lines.append(f"{run.out}: this run has finished; its own figures follow. --replace starts it anew")
    elif step:
        lines.append(f"continuing {run.out} at step {step} of {run.steps}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# During the run


class Progress:
    """A bar or lines on the terminal, losses.csv, curves.png, and trackers, if any. Silent unless `show`."""

    def __init__(self, run, show=True):
        self.run, self.state, self.plan, self.show = run, run.state, run.plan, show
        off = None if show else True  # None: where there is no terminal
        self.bar = tqdm(total=run.steps, initial=run.state.step, unit="step", dynamic_ncols=True, disable=off)
        self.log, self.close_log = open_log(run.config) if show else (None, None)
        self.spoke = self.wrote = time.monotonic()
        if show and run.state.rows:
            self.write_csv()  # after a kill it may know more than last.pt

    def trained(self, loss, rate):
        """After a step: its row in the table of losses, and a sign of life."""
        state, steps = self.state, self.plan.steps
        state.rows.append(self.row(loss, rate))
        if not self.show:
            return
        speed = state.tokens_per_second()
        self.track(train_loss=loss, lr=rate, tokens_per_second=speed)
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.1e}", tok_s=f"{speed:,.0f}" if speed else "...")
        if state.changes and state.step == self.run.first_step + 1 and len(state.rows) > 2:
            before = state.rows[-2]["lr"]
            self.say(f"step {state.step}: learning rate {rate:.3g}; it was {before:.3g} in the step before the change")
        if self.bar.disable and time.monotonic() - self.spoke > SILENCE:
            line = f"step {state.step:,} of {steps:,}  loss {loss:.3f}  learning rate {rate:.1e}"
            if speed:
                left = tqdm.format_interval((steps - state.step) * self.plan.tokens_per_step / speed)
                line += f"  {speed:,.0f} tokens/s  {left} left"
            self.say(line)

    def evaluated(self, val_loss, blimp, sample):
        """After a validation. blimp: accuracy on a subset of minimal pairs, or None; sample: a text, may be empty."""
        state, run = self.state, self.run
        bits = bits_per_byte(val_loss, run.meta["val"])
        if not state.rows:
            state.rows.append(self.row("", ""))
        state.rows[-1].update(val_loss=val_loss, blimp="" if blimp is None else blimp)
        if not self.show:
            return
        self.track(val_loss=val_loss, bits_per_byte=bits, blimp=blimp)
        self.write_csv()
        if state.step:  # one point is no curve
            self.draw_curves()
        trained = state.rows[-1]["train_loss"]
        train_loss = f"{trained:.4f}" if trained != "" else "-"
        self.say(
            f"step {state.step:>6}  train loss {train_loss:>7}  val loss {val_loss:.4f}  {bits:.4f} bits per byte"
            f"  {state.seconds:.0f} s"
        )
        if sample:
            self.say(f"    {sample!r}")

    def row(self, train_loss, rate):
        step, plan = self.state.step, self.plan
        tokens, words, seconds = step * plan.tokens_per_step, round(plan.words(step)), round(self.state.seconds, 3)
        return dict(zip(COLUMNS, (step, tokens, words, rate, train_loss, "", "", seconds)))

    def say(self, line):
        self.bar.write(line)
        self.spoke = time.monotonic()

    def track(self, **numbers):
        if self.log:
            self.log({name: value for name, value in numbers.items() if value is not None}, self.state.step)

    def write_csv(self):
        """losses.csv, from the rows in memory: after a resume they hold no row twice."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.state.rows)
        atomic_write(self.run.path("losses.csv"), text.getvalue())
        self.wrote = time.monotonic()

    def draw_curves(self):
        """curves.png, unless matplotlib is missing."""
        with contextlib.suppress(ImportError):
            from lab.report import plots  # here: it takes a second to load

            title = f"{self.run.config.preset} on {self.run.meta['corpus']}"
            atomic_write(self.run.path("curves.png"), lambda f: plots.draw_curves(self.state.rows, title, f))

    def between_steps(self):
        """Now and then, losses.csv: the last row is complete here."""
        if self.show and self.state.rows and time.monotonic() - self.wrote > SILENCE:
            self.write_csv()

    def close(self):
        self.bar.close()
        if self.close_log:
            self.close_log()


def sample_text(model, tokenizer, tokens, seed):
    """A line of text by the model as it is, to watch it learn."""
    if not tokens:
        return ""
    model.eval()

    def pick(logits, ids):
        return (logits / 0.8).softmax(-1)

    ids = [token for token, _ in model.generate([tokenizer.bos_id], tokens, seed=seed, pick=pick)]
    return tokenizer.decode([i for i in ids if i != tokenizer.bos_id])


# ---------------------------------------------------------------------------------------------------------------------
# Experiment trackers, imported only if train.log asks for one: (log(numbers, step), close())


def tensorboard(config):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(config.out_dir)

    def log(numbers, step):
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def wandb(config):
    """Also trackio, which has wandb's functions."""
    tracker = importlib.import_module(config.train.log)
    os.environ.setdefault("WANDB_DIR", config.out_dir)
    tracker.init(project="sllama-lab", name=config.out_dir, config=dataclasses.asdict(config))
    return lambda numbers, step: tracker.log(numbers, step=step), lambda: tracker.finish()


def open_log(config):
    name = config.train.log
    if name == "none":
        return None, None
    try:
        return tensorboard(config) if name == "tensorboard" else wandb(config)
    except ImportError:
        raise UserError(f"train.log: {name} is not installed; pip install {name}, or train.log=none") from None


# ---------------------------------------------------------------------------------------------------------------------
# After the last step


def closing_block(run):
    """What the run came to, one greppable `key: value` a line."""
    state, best = run.state, run.path("ckpt.pt")
    trained = [row["train_loss"] for row in state.rows if row["train_loss"] != ""]
    numbers = {
        "steps": state.step,
        "tokens": state.step * run.plan.tokens_per_step,
        "words": round(run.plan.words(state.step)),
        "train_loss": f"{trained[-1] if trained else math.nan:.6f}",
        "val_loss": f"{state.best:.6f}",
        "val_bits_per_byte": f"{bits_per_byte(state.best, run.meta['val']):.6f}",
        "tokens_per_second": f"{state.tokens_per_second() or math.nan:.0f}",
        "seconds": f"{state.seconds:.1f}",
        "peak_memory_mb": f"{state.peak_memory_mb:.0f}",
        "skipped_steps": state.skipped,
        "corpus": run.meta["corpus"],
        "checkpoint": best,
    }
    lines = [f"{key}: {value}" for key, value in numbers.items()]
    if state.step < run.steps:
        path = run.path("last.pt")
        return "\n".join(
            [f"stopped at step {state.step} of {run.steps}; the same command continues from {path}", *lines]
        )
    pairs = run.config.eval.data
    words = [best] if pairs == DEFAULT_PAIRS else [best, "--data", pairs]
    return "\n".join([*lines, f"next: {command_line('eval_blimp.py', *words)}"])
