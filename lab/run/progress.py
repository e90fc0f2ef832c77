"""What a run shows and records beside its checkpoints: losses.csv, curves.png, lines, the closing block.

Nothing here changes a number of the run.
"""

import contextlib
import dataclasses
import importlib
import math
import os
import time

from lab.files import UserError, atomic_write
from lab.run.data import bits_per_byte
from lab.run.resume import State
from lab.settings import command_line
from model import parameter_counts

from tqdm import tqdm

COLUMNS = ["step", "tokens", "words", "lr", "train_loss", "val_loss", "blimp", "seconds"]
PLAIN = {"embedding": "full", "attention": "mha", "mlp": "full", "layer_sharing": "none", "tie_word_embeddings": False}
DEFAULT_PAIRS = "data/blimp"  # eval.data of config.yaml
SILENCE = 25  # seconds after which a run that is not on a terminal says something
LONG = 5e14  # parameters x tokens: four hours where 3 M parameters train at 12,000 tokens/s


# ---------------------------------------------------------------------------------------------------------------------
# Before the first step


def parameter_table(config):
    """Lines: parameters by part, beside a plain untied LLaMA of the same shape, and what each trick saved."""
    ours = parameter_counts(config)
    theirs = parameter_counts(dataclasses.replace(config, **PLAIN, num_key_value_heads=None))
    ours["total"], theirs["total"] = sum(ours.values()), sum(theirs.values())
    notes = {"embedding": config.embedding, "attention": config.attention, "mlp": config.mlp}
    if config.tie_word_embeddings:
        notes["head"] = "tied to the embedding"
    if config.layer_sharing != "none":
        notes["total"] = f"layer_sharing {config.layer_sharing}"
    lines = [f"{'parameters':<12}{'this model':>12}{'plain LLaMA':>13}{'saved':>12}"]
    for part, count in ours.items():
        saved = f"{theirs[part] - count:,}" if theirs[part] != count else "-"
        lines.append(f"{part:<12}{count:>12,}{theirs[part]:>13,}{saved:>12}  {notes.get(part, '')}".rstrip())
    return lines


def banner(run, finished=False):
    """The lines that a run starts with."""
    config, plan, text, step = run.config, run.plan, run.meta["train"], run.state.step
    s, m, precision = config.train, config.model, run.provenance["dtype"]
    if precision == "float16":
        precision += " with gradient scaler"
    lines = [
        f"preset {config.preset} on {run.meta['corpus']}: {text['words']:,} words, {text['tokens']:,} tokens, "
        f"vocabulary {m.vocab_size:,}",
        *parameter_table(m),
        f"device {run.provenance['device']}; {precision}; compile {'on' if run.compiled else 'off'} ({run.why}); "
        f"gradient checkpointing {'on' if s.gradient_checkpointing else 'off'}; processes {run.distributed.size}",
        f"{plan.steps:,} steps of {plan.windows_per_step} windows x {m.max_position_embeddings} = "
        f"{plan.tokens_per_step:,} tokens; {plan.steps * plan.epochs_per_step:.2f} epochs of "
        f"{1 / plan.epochs_per_step:.1f} steps and {text['words']:,} words; {plan.words(plan.steps):,.0f} words seen",
    ]
    if s.warmup > plan.steps:
        reached = s.learning_rate * plan.steps / s.warmup
        lines.append(
            f"WARNING: the warm-up of {s.warmup:.0f} steps is longer than the run of {plan.steps}: the learning rate "
            f"ends at {reached:.2g}, below its peak of {s.learning_rate:g}; train.warmup=0.05 is a twentieth of the run"
        )
    work = sum(parameter_counts(m).values()) * plan.steps * plan.tokens_per_step
    if run.device.type == "cpu" and work > LONG:
        lines.append("notice: this takes hours on a CPU; for a first look, --preset quick takes minutes")
    lines += [f"changed {line}" for line in run.state.changes]
    if finished:
        lines.append(f"{run.out}: this run has finished; its own figures follow. --replace starts it anew")
    elif step:
        lines.append(f"continuing {run.out} at step {step} of {run.steps}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# During the run


class Progress:
    """A bar or lines on the terminal, losses.csv, curves.png, and the tracker that train.log asks for."""

    def __init__(self, run):
        self.run, self.state, self.plan = run, run.state, run.plan
        bar = {"total": run.steps, "initial": run.state.step, "unit": "step", "dynamic_ncols": True}
        self.bar = tqdm(**bar, disable=None)  # only on a terminal
        self.log, self.close_log = open_log(run.config)
        self.spoke = time.monotonic()

    def trained(self, loss, rate):
        """After a step: its row in the table of losses, and a sign of life."""
        state, steps = self.state, self.plan.steps
        state.rows.append(self.row(loss, rate))
        speed = state.tokens_per_second(since=self.run.start)
        self.track(train_loss=loss, lr=rate, tokens_per_second=speed)
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.1e}", tok_s=f"{speed:,.0f}" if speed else "...")
        if state.changes and state.step == self.run.start.step + 1 and len(state.rows) > 2:
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
        self.track(val_loss=val_loss, bits_per_byte=bits, blimp=blimp)
        self.write_csv()
        if state.step:  # one point is no curve
            self.draw_curves()
        trained = f"{state.last('train_loss'):.4f}" if state.step else "-"
        self.say(
            f"step {state.step:>6}  train loss {trained:>7}  val loss {val_loss:.4f}  {bits:.4f} bits per byte"
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
        self.log({name: value for name, value in numbers.items() if value is not None}, self.state.step)

    def write_csv(self):
        """losses.csv, from the rows in memory: after a resume they hold no row twice."""
        lines = [",".join(str(row.get(column, "")) for column in COLUMNS) for row in self.state.rows]
        atomic_write(self.run.path("losses.csv"), "\n".join([",".join(COLUMNS), *lines, ""]))

    def draw_curves(self):
        """curves.png, unless matplotlib is missing."""
        with contextlib.suppress(ImportError):
            from lab.report import plots  # here: it takes a second to load

            title = f"{self.run.config.preset} on {self.run.meta['corpus']}"
            atomic_write(self.run.path("curves.png"), lambda f: plots.draw_curves(self.state.rows, title, f))

    def close(self):
        self.bar.close()
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


def open_log(config):
    """(log(numbers, step), close()) of the tracker that train.log asks for; it is imported only then."""
    name = config.train.log
    try:
        if name == "none":
            return lambda numbers, step: None, lambda: None
        if name == "tensorboard":
            return tensorboard(config.out_dir)
        tracker = importlib.import_module(name)  # wandb, or trackio, which has its functions
    except ImportError:
        raise UserError(f"train.log: {name} is not installed; pip install {name}, or train.log=none") from None
    os.environ.setdefault("WANDB_DIR", config.out_dir)
    tracker.init(project="sllama-lab", name=config.out_dir, config=dataclasses.asdict(config))
    return tracker.log, tracker.finish


def tensorboard(folder):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)

    def log(numbers, step):
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


# ---------------------------------------------------------------------------------------------------------------------
# After the last step


def closing_block(run):
    """What the run came to, one greppable `key: value` a line."""
    state, best = run.state, run.path("ckpt.pt")
    numbers = {
        "steps": state.step,
        "tokens": state.step * run.plan.tokens_per_step,
        "words": round(run.plan.words(state.step)),
        "train_loss": f"{state.last('train_loss'):.6f}",
        "val_loss": f"{state.best:.6f}",
        "val_bits_per_byte": f"{bits_per_byte(state.best, run.meta['val']):.6f}",
        "tokens_per_second": f"{state.tokens_per_second(since=State()) or math.nan:.0f}",
        "seconds": f"{state.seconds:.1f}",
        "peak_memory_mb": f"{state.peak_memory_mb:.0f}",
        "skipped_steps": state.skipped,
        "corpus": run.meta["corpus"],
        "checkpoint": best,
    }
    lines = [f"{key}: {value}" for key, value in numbers.items()]
    if state.step < run.steps:
        path = run.path("last.pt")
        return "\n".join([f"stopped at step {state.step} of {run.steps}; {run.again} continues from {path}", *lines])
    pairs = run.config.eval.data
    words = [best] if pairs == DEFAULT_PAIRS else [best, "--data", pairs]
    return "\n".join([*lines, f"next: {command_line('eval_blimp.py', *words)}"])
