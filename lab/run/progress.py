"""What a run shows and writes down beside its checkpoints: losses.csv, curves.png, lines, the closing block.

Nothing here changes a number of the run.
"""

import csv
import dataclasses
import io
import math
import os
import time

from lab.files import UserError, atomic_write
from model import parameter_counts

from tqdm import tqdm

COLUMNS = ["step", "tokens", "words", "lr", "train_loss", "val_loss", "blimp", "seconds"]
SILENCE = 25  # seconds after which a run that is not on a terminal says something


def bits_per_byte(loss, counts):
    """Nats per token -> bits per byte of the text itself; counts: meta.json's {"tokens", "bytes"}."""
    return loss / math.log(2) * counts["tokens"] / counts["bytes"]


# ---------------------------------------------------------------------------------------------------------------------
# Before the first step


def parameter_table(config):
    """Lines: parameters by part, beside a plain untied LLaMA of the same shape, and what each trick saved."""
    plain = dataclasses.replace(
        config,
        embedding="full",
        attention="mha",
        mlp="full",
        layer_sharing="none",
        tie_word_embeddings=False,
        num_key_value_heads=None,
    )
    ours, theirs = parameter_counts(config), parameter_counts(plain)
    notes = {
        "embedding": "tied to the head" if config.tie_word_embeddings else config.embedding,
        "attention": config.attention,
        "mlp": config.mlp,
        "norms": "",
        "head": "",
    }
    if config.layer_sharing != "none":
        for part in ("attention", "mlp", "norms"):
            if ours[part] < theirs[part]:
                notes[part] += f" layer_sharing {config.layer_sharing}"
    ours["total"], theirs["total"], notes["total"] = sum(ours.values()), sum(theirs.values()), ""
    lines = [f"{'parameters':<12}{'this model':>12}{'plain LLaMA':>13}{'saved':>12}"]
    for part in ours:
        saved = theirs[part] - ours[part]
        saved = f"{saved:,}" if saved else "-"
        lines.append(f"{part:<12}{ours[part]:>12,}{theirs[part]:>13,}{saved:>12}  {notes[part]}".rstrip())
    return lines


def banner(config, meta, plan, origin, scaled, why, last_rate):
    """The lines that a run starts with. why: it is compiled or not; last_rate: learning rate of its last step."""
    s, m = config.train, config.model
    train = meta["train"]
    precision = origin["dtype"] + (" with gradient scaler" if scaled else "")
    lines = [
        f"preset {config.preset} on {meta['corpus']}: {train['words']:,} words, {train['tokens']:,} tokens, "
        f"vocabulary {m.vocab_size:,}",
        *parameter_table(m),
        f"device {origin['device']}; {precision}; compile {'on' if origin['compiled'] else 'off'} ({why}); "
        f"gradient checkpointing {'on' if s.gradient_checkpointing else 'off'}; processes {origin['processes']}",
        f"{plan.steps:,} steps of {plan.windows_per_step} windows x {m.max_position_embeddings} = "
        f"{plan.tokens_per_step:,} tokens; {plan.steps * plan.epochs_per_step:.2f} epochs of "
        f"{1 / plan.epochs_per_step:.1f} steps and {train['words']:,} words; {plan.words(plan.steps):,.0f} words seen",
    ]
    warmup = s.warmup if s.warmup >= 1 else s.warmup * plan.steps
    if warmup >= plan.steps:
        lines.append(
            f"WARNING: the warm-up of {warmup:.0f} steps is longer than the run of {plan.steps}: the learning "
            f"rate never reaches {s.learning_rate:g}, it ends at {last_rate:.2g}. train.warmup=0.05 would "
            "warm up over a twentieth of the run."
        )
    if m.vocab_size != config.tokenizer.vocab_size and not config.tokenizer.model:
        lines.append(
            f"notice: the prepared tokenizer has {m.vocab_size:,} pieces, not what tokenizer.vocab_size says; "
            "the model follows it"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# During the run


class Progress:
    """Bar or lines on the terminal, losses.csv, curves.png, and others who want the numbers. Silent unless `show`."""

    def __init__(self, config, meta, plan, state, device, show=True):
        self.config, self.meta, self.plan, self.state = config, meta, plan, state
        self.on_cpu, self.show = device.type == "cpu", show
        self.bar = tqdm(
            total=plan.steps, initial=state.step, unit="step", dynamic_ncols=True, disable=None if show else True
        )  # None: only on a terminal
        self.trackers = open_trackers(config) if show else []
        self.csv_path = os.path.join(config.out_dir, "losses.csv")
        self.rows_written = 0
        self.spoke = self.wrote = time.monotonic()
        self.eta_shown = False  # how long the run will take
        if show and state.rows:
            self.rewrite_csv()  # after a kill it may know more than last.pt

    def trained(self, loss, rate, elapsed, compiling):
        """After a step: its row in the table of losses, and a sign of life."""
        state, plan = self.state, self.plan
        state.rows.append(self.row(loss, rate))
        speed = state.tokens_per_second()
        self.track(train_loss=loss, lr=rate, tokens_per_second=speed)
        if not self.show:
            return
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.1e}", tok_s=f"{speed:,.0f}" if speed else "...")
        if not self.eta_shown and (speed or (elapsed > 5 and not compiling)):
            self.say(outlook(plan, state, plan.tokens_per_step / elapsed, self.on_cpu))
            self.eta_shown = True
        if self.bar.disable and time.monotonic() - self.spoke > SILENCE:
            self.say(
                f"step {state.step:,} of {plan.steps:,}  loss {loss:.3f}  learning rate {rate:.1e}"
                + (f"  {speed:,.0f} tokens/s  {time_left(plan, state, speed)} left" if speed else "")
            )

    def evaluated(self, val_loss, blimp, sample):
        """After a validation: blimp, the accuracy on a subset of minimal pairs, and sample, a text, may be ""."""
        state = self.state
        bits = bits_per_byte(val_loss, self.meta["val"])
        if not state.rows:
            state.rows.append(self.row("", ""))
        state.rows[-1].update(val_loss=val_loss, blimp=blimp)
        self.track(val_loss=val_loss, bits_per_byte=bits, blimp=blimp)
        if not self.show:
            return
        self.rewrite_csv()
        if state.step:  # one point is no curve, and matplotlib takes a second to load
            draw_curves(state.rows, f"{self.config.preset} on {self.meta['corpus']}", self.config.out_dir)
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
        return {
            "step": step,
            "tokens": step * plan.tokens_per_step,
            "words": round(plan.words(step)),
            "lr": rate,
            "train_loss": train_loss,
            "val_loss": "",
            "blimp": "",
            "seconds": round(self.state.seconds, 3),
        }

    def say(self, line):
        self.bar.write(line)
        self.spoke = time.monotonic()

    def track(self, **numbers):
        known = {name: value for name, value in numbers.items() if value not in ("", None)}
        for tracker in self.trackers:
            tracker.log(known, self.state.step)

    def rewrite_csv(self):
        """All of losses.csv, from the rows in memory: after a resume they hold no row twice."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.state.rows)
        atomic_write(self.csv_path, text.getvalue())
        self.rows_written, self.wrote = len(self.state.rows), time.monotonic()

    def append_csv(self):
        """The rows since then, in one piece, at most every half minute. Call it where the last row is complete."""
        if not self.show or time.monotonic() - self.wrote < SILENCE or not self.rows_written:
            return
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(self.state.rows[self.rows_written :])
        try:
            with open(self.csv_path, "a", encoding="utf-8", newline="") as f:
                f.write(text.getvalue())
        except OSError as e:
            raise UserError(
                f"{self.csv_path}: cannot be written ({e.strerror}); the same command continues from last.pt"
            ) from None
        self.rows_written, self.wrote = len(self.state.rows), time.monotonic()

    def close(self):
        self.bar.close()
        for tracker in self.trackers:
            tracker.close()


def time_left(plan, state, tokens_per_second):
    seconds = (plan.steps - state.step) * plan.tokens_per_step / tokens_per_second
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def outlook(plan, state, speed_of_last_step, on_cpu):
    """How long the rest takes at the speed so far."""
    speed = state.tokens_per_second() or speed_of_last_step
    text = f"about {time_left(plan, state, speed)} to go at {speed:,.0f} tokens/s, validation not counted"
    if on_cpu and (plan.steps - state.step) * plan.tokens_per_step / speed > 3600:
        text += "; for a first look, --preset quick takes minutes (prepare.py, train.py and eval_blimp.py all know it)"
    return text


def draw_curves(rows, title, folder):
    """curves.png: losses against tokens, and the accuracy on minimal pairs if it was measured."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = {"train_loss": {"alpha": 0.6, "linewidth": 0.8}, "val_loss": {"marker": "o", "markersize": 3}}
    for column, style in styles.items():
        known = [row for row in rows if row[column] != ""]
        tokens, values = [row["tokens"] for row in known], [row[column] for row in known]
        axes.plot(tokens, values, label=column.replace("_", " "), **style)
    axes.set(xlabel="tokens", ylabel="loss, nats per token", title=title)
    scored = [row for row in rows if row["blimp"] != ""]
    if scored:
        right = axes.twinx()
        tokens, percent = [row["tokens"] for row in scored], [100 * row["blimp"] for row in scored]
        right.plot(tokens, percent, color="tab:green", marker="s", markersize=3, label="minimal pairs, %")
        right.set_ylabel("accuracy on a subset of minimal pairs, %")
        right.legend(loc="lower left")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    atomic_write(os.path.join(folder, "curves.png"), png.getvalue())


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
# Experiment trackers, imported only if train.log asks for one


class TensorBoard:
    def __init__(self, config):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(config.out_dir)

    def log(self, numbers, step):
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self):
        self.writer.close()


class WeightsAndBiases:
    def __init__(self, config):
        import wandb

        out = config.out_dir
        self.run = wandb.init(project="sllama-lab", name=out, dir=out, config=dataclasses.asdict(config))

    def log(self, numbers, step):
        self.run.log(numbers, step=step)

    def close(self):
        self.run.finish()


def open_trackers(config):
    kind = config.train.log
    if kind == "none":
        return []
    try:
        return [{"tensorboard": TensorBoard, "wandb": WeightsAndBiases}[kind](config)]
    except ImportError:
        raise UserError(
            f"train.log: the package {kind} is not installed; pip install {kind}, or train.log=none"
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# After the last step


def closing_block(config, meta, plan, state, stopped):
    """What the run came to, one greppable `key: value` a line."""
    trained = [row["train_loss"] for row in state.rows if row["train_loss"] != ""]
    best = os.path.join(config.out_dir, "ckpt.pt")
    numbers = {
        "steps": state.step,
        "tokens": state.step * plan.tokens_per_step,
        "words": round(plan.words(state.step)),
        "train_loss": f"{trained[-1] if trained else math.nan:.6f}",
        "val_loss": f"{state.best:.6f}",
        "val_bits_per_byte": f"{bits_per_byte(state.best, meta['val']):.6f}",
        "tokens_per_second": f"{state.tokens_per_second() or math.nan:.0f}",
        "seconds": f"{state.seconds:.1f}",
        "peak_memory_mb": f"{state.peak_memory_mb:.0f}",
        "skipped_steps": state.skipped,
        "corpus": meta["corpus"],
        "checkpoint": best,
    }
    if not stopped:
        numbers["next"] = f"python eval_blimp.py {best}"
    lines = [f"{key}: {value}" for key, value in numbers.items()]
    if stopped:
        last = os.path.join(config.out_dir, "last.pt")
        lines.insert(0, f"stopped at step {state.step} of {plan.steps}; the same command continues from {last}")
    return "\n".join(lines)
