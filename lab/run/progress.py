"""What a run shows and writes down beside its checkpoints: losses.csv, curves.png, lines, the closing block.

Nothing here changes a number of the run.
"""

import contextlib
import csv
import dataclasses
import io
import math
import time

from lab.files import UserError, atomic_write
from lab.settings import command_line
from model import parameter_counts

from tqdm import tqdm

COLUMNS = ["step", "tokens", "words", "lr", "train_loss", "val_loss", "blimp", "seconds"]
DEFAULT_PAIRS = "data/blimp"  # eval.data of config.yaml
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


def banner(run):
    """The lines that a run starts with."""
    config, plan, train = run.config, run.plan, run.meta["train"]
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
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# During the run


class Progress:
    """Bar or lines on the terminal, losses.csv, curves.png, and others who want the numbers. Silent unless `show`."""

    def __init__(self, run, show=True):
        self.run, self.state, self.plan, self.show = run, run.state, run.plan, show
        self.bar = tqdm(
            total=run.steps,
            initial=run.state.step,
            unit="step",
            dynamic_ncols=True,
            disable=None if show else True,  # None: only on a terminal
        )
        self.log, self.close_log = open_log(run.config) if show else (None, None)
        self.rows_written = 0
        self.spoke = self.wrote = time.monotonic()
        self.length_said = False
        if show and run.state.rows:
            self.rewrite_csv()  # after a kill it may know more than last.pt

    def trained(self, loss, rate, elapsed):
        """After a step: its row in the table of losses, and a sign of life."""
        state, run = self.state, self.run
        state.rows.append(self.row(loss, rate))
        if not self.show:
            return
        speed = state.tokens_per_second()
        self.track(train_loss=loss, lr=rate, tokens_per_second=speed)
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.1e}", tok_s=f"{speed:,.0f}" if speed else "...")
        if state.changes and state.step == run.first_step + 1 and len(state.rows) > 2:
            before = state.rows[-2]["lr"]
            self.say(f"step {state.step}: learning rate {rate:.3g}; it was {before:.3g} in the step before the change")
        if not self.length_said and (speed or (elapsed > 5 and not run.compiled)):
            self.say(outlook(run, speed or self.plan.tokens_per_step / elapsed))
            self.length_said = True
        if self.bar.disable and time.monotonic() - self.spoke > SILENCE:
            self.say(
                f"step {state.step:,} of {run.steps:,}  loss {loss:.3f}  learning rate {rate:.1e}"
                + (f"  {speed:,.0f} tokens/s  {time_left(run, speed)} left" if speed else "")
            )

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
        self.rewrite_csv()
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
        if self.log:
            self.log({name: value for name, value in numbers.items() if value is not None}, self.state.step)

    def rewrite_csv(self):
        """All of losses.csv, from the rows in memory: after a resume they hold no row twice."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.state.rows)
        atomic_write(self.run.path("losses.csv"), text.getvalue())
        self.rows_written, self.wrote = len(self.state.rows), time.monotonic()

    def draw_curves(self):
        """curves.png, unless matplotlib is missing."""
        with contextlib.suppress(ImportError):
            from lab.report import plots  # here: it takes a second to load

            title = f"{self.run.config.preset} on {self.run.meta['corpus']}"
            atomic_write(self.run.path("curves.png"), lambda f: plots.draw_curves(self.state.rows, title, f))

    def append_csv(self):
        """The rows since then, in one piece, at most every half minute. Call it where the last row is complete."""
        if not self.show or time.monotonic() - self.wrote < SILENCE or not self.rows_written:
            return
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(self.state.rows[self.rows_written :])
        path = self.run.path("losses.csv")
        try:
            with open(path, "a", encoding="utf-8", newline="") as f:
                f.write(text.getvalue())
        except OSError as e:
            raise UserError(
                f"{path}: cannot be written ({e.strerror}); the same command continues from last.pt"
            ) from None
        self.rows_written, self.wrote = len(self.state.rows), time.monotonic()

    def close(self):
        self.bar.close()
        if self.close_log:
            self.close_log()


def seconds_left(run, tokens_per_second):
    return (run.steps - run.state.step) * run.plan.tokens_per_step / tokens_per_second


def time_left(run, tokens_per_second):
    return tqdm.format_interval(seconds_left(run, tokens_per_second))


def outlook(run, tokens_per_second):
    """How long the rest takes at this speed."""
    left = time_left(run, tokens_per_second)
    text = f"about {left} to go at {tokens_per_second:,.0f} tokens/s, validation not counted"
    long = run.device.type == "cpu" and seconds_left(run, tokens_per_second) > 3600
    if long and run.config.preset != "quick":
        text += "; for a first look, --preset quick takes minutes (prepare.py, train.py and eval_blimp.py all know it)"
    return text


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


def open_tensorboard(config):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(config.out_dir)

    def log(numbers, step):
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def open_wandb(config):
    import wandb

    run = wandb.init(project=PROJECT, name=config.out_dir, dir=config.out_dir, config=dataclasses.asdict(config))
    return lambda numbers, step: run.log(numbers, step=step), run.finish


def open_trackio(config):
    import trackio

    trackio.init(project=PROJECT, name=config.out_dir, config=dataclasses.asdict(config))
    return lambda numbers, step: trackio.log(numbers, step=step), trackio.finish


TRACKERS = {"tensorboard": open_tensorboard, "wandb": open_wandb, "trackio": open_trackio}
PROJECT = "sllama-lab"


def open_log(config):
    kind = config.train.log
    if kind == "none":
        return None, None
    try:
        return TRACKERS[kind](config)
    except ImportError:
        raise UserError(
            f"train.log: the package {kind} is not installed; pip install {kind}, or train.log=none"
        ) from None


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
