"""Trains a model on a prepared corpus.

    python train.py [--preset NAME] [section.key=value ...]                          one process
    torchrun --nproc_per_node=N train.py [--preset NAME] [section.key=value ...]     N processes, same numbers

Setup, data, schedule, step, evaluate, save, loop. What it does:
- mixed precision (bfloat16; float16 with a gradient scaler), gradient accumulation and checkpointing, torch.compile
- epochs without replacement: which windows a step sees follows from (seed, step) alone, whatever the number of processes
- AdamW, or Muon for the hidden matrices; warm-up, then cosine, linear or constant; clipping; averaged weights; z-loss
- ckpt.pt is the best on a fixed set of validation windows; last.pt continues a run to the very bits it would have reached
- Ctrl-C, a scheduler's SIGTERM, a full disk, a NaN: ends with a message and a checkpoint to go on from
"""
import argparse
import contextlib
import ctypes
import dataclasses
import glob
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from tqdm import tqdm

from lab import checkpoint, commands, files, progress
from lab import settings as configuration
from lab.files import UserError, atomic_write
from model import Model
from tokenizer import load as load_tokenizer

# ---------------------------------------------------------------------------------------------------------------------
# Setup: device, precision, processes


def pick_precision(device, dtype):
    """device, train.dtype -> (dtype of matrix products, whether gradients need a scaler).

    auto is bfloat16 where the hardware multiplies it (CUDA from compute capability 8, CPUs with avx512_bf16 or AMX), else float32.
    """
    if dtype == "auto":
        native = {"cuda": lambda: torch.cuda.get_device_capability(device)[0] >= 8,
                  "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(), "mps": lambda: False}[device.type]()
        dtype = "bfloat16" if native else "float32"
    if dtype == "float16" and device.type != "cuda":
        raise UserError(f"train.dtype: float16 needs CUDA, the device is {device.type}; use bfloat16 or float32")
    return getattr(torch, dtype), dtype == "float16"


def pick_compile(device, setting, tokens):
    """Whether to compile: it costs about a minute of start-up, so `auto` does where a long run on CUDA pays it back."""
    if setting == "auto":
        return device.type == "cuda" and tokens > 20e6
    if setting and device.type == "cpu" and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        print("notice: train.compile=true, but no C++ compiler was found; running without")
        return False
    return setting


M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = 1, -1, -3, -4          # glibc's malloc.h


def keep_freed_memory(most=None):
    """Lets glibc keep freed blocks, those of up to `most` MB: given back, each step pays again for zeroed pages (1.2 times the speed on a CPU).
    No "fast bins": their slivers beside aligned blocks keep free blocks apart."""
    with contextlib.suppress(OSError, AttributeError):                  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MXFAST, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_MMAP_THRESHOLD, most << 20) if most else mallopt(M_MMAP_MAX, 0)


class World:
    """The processes of the run: one, or those that torchrun started."""

    def __init__(self):
        self.rank, self.size, self.local_rank = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        self.main = self.rank == 0

    def connect(self, device):
        if self.size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def mean(self, tensors):
        """Replaces each tensor by its mean over the processes, in one message."""
        if self.size > 1:
            flat = torch.cat([t.flatten() for t in tensors])
            self.sum(flat)
            for t, part in zip(tensors, (flat / self.size).split([t.numel() for t in tensors])):
                t.copy_(part.view_as(t))

    def any(self, flag):
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=f"cuda:{self.local_rank}" if dist.get_backend() == "nccl" else "cpu")
        self.sum(votes)
        return votes.item() > 0

    def sum(self, tensor):
        try:
            dist.all_reduce(tensor)
        except RuntimeError:
            raise UserError("another process of this run has ended, so this one ends too; its own message says why. The same command continues from last.pt") from None


# ---------------------------------------------------------------------------------------------------------------------
# Data


class Windows:
    """A .bin file of token ids as windows of T tokens, each with its targets one token ahead.

    An epoch holds every window once, in an order that follows from (seed, epoch); epochs follow each other without a gap.
    """

    def __init__(self, path, T, vocab_size, seed=0, sha256=None):
        try:
            raw = open(path, "rb").read()
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror}); run prepare.py with the same preset") from None
        if len(raw) % 2 or (sha256 and hashlib.sha256(raw).hexdigest() != sha256):
            raise UserError(f"{path}: damaged: it is not the file that meta.json describes; delete the folder and run prepare.py again")
        self.tokens = np.frombuffer(raw, dtype="<u2")
        self.T, self.seed, self.count = T, seed, (len(self.tokens) - 1) // T
        if self.count < 1:
            raise UserError(f"{path}: {len(self.tokens)} tokens are less than one window of {T}; use more text or a smaller model.max_position_embeddings")
        if (top := int(self.tokens.max())) >= vocab_size:
            raise UserError(f"{path}: holds token {top}, but the tokenizer has {vocab_size} pieces; run prepare.py again")
        self.epoch = self.order = None

    def __len__(self):
        return self.count

    def take(self, windows):
        """Inputs and targets, (len(windows), T) int64 each."""
        at = np.asarray(windows)[:, None] * self.T + np.arange(self.T + 1)
        both = torch.from_numpy(self.tokens[at].astype(np.int64))
        return both[:, :-1], both[:, 1:]

    def batch(self, first, size, step=1):
        """Windows number first, first + step, ... (size of them) of the endless sequence of shuffled epochs."""
        chosen = []
        for n in range(first, first + size * step, step):
            epoch, place = divmod(n, self.count)
            if epoch != self.epoch:
                self.epoch, self.order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.count)
            chosen.append(self.order[place])
        return self.take(chosen)


def load_data(config, T):
    """(train windows, validation windows, meta, tokenizer) of the prepared folder; UserError if any of it is missing or does not fit."""
    folder = config.data_dir
    try:
        with open(os.path.join(folder, "meta.json"), encoding="utf-8") as f:
            meta = json.load(f)
        if files.sealed(meta) != meta:
            raise ValueError("changed since prepare.py wrote it")
        vocab, hashes = meta["vocab_size"], (meta["train"]["sha256"], meta["val"]["sha256"])
    except FileNotFoundError:
        raise UserError(f"{folder}: no prepared corpus; run: python prepare.py --preset {config.preset}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{folder}/meta.json: damaged ({e}); delete the folder and run prepare.py again") from None
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.model"))
    if tokenizer.sha256 != meta.get("tokenizer_sha256") or tokenizer.vocab_size != vocab:
        raise UserError(f"{folder}/tokenizer.model: not the tokenizer that the corpus was encoded with; run prepare.py again")
    windows = [Windows(os.path.join(folder, name), T, vocab, config.train.seed, sha) for name, sha in zip(("train.bin", "val.bin"), hashes)]
    return *windows, meta, tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# Schedule and optimiser


def schedule(step, settings, steps):
    """Fraction of the peak learning rate in step 0, 1, ...: a linear warm-up that does not start at 0, then the decay."""
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * steps
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    floor = settings.min_learning_rate / settings.learning_rate
    done = min(1.0, (step - warmup) / max(1, (settings.decay_steps or steps) - warmup))
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[settings.schedule]
    return floor + (1 - floor) * shape if settings.schedule != "constant" else 1.0


def make_optimizers(model, settings, device):
    """A list of optimisers whose groups hold every parameter once; each group remembers its peak learning rate."""
    named = list(model.named_parameters())
    hidden = {n for n, p in named if p.dim() == 2 and n.startswith(("attention.", "mlp."))} if settings.optimizer == "muon" else set()
    rest = [(n, p) for n, p in named if n not in hidden]
    groups = [{"params": [p for _, p in rest if p.dim() > 1], "weight_decay": settings.weight_decay},
              {"params": [p for _, p in rest if p.dim() < 2], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, betas=tuple(settings.betas), fused=device.type in ("cuda", "cpu"))]
    if hidden:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"train.optimizer: muon needs a newer PyTorch (torch.optim.Muon), this is {torch.__version__}; use adamw")
        optimizers.append(torch.optim.Muon([p for n, p in named if n in hidden], lr=settings.muon_learning_rate, weight_decay=settings.weight_decay))
    for group in (g for o in optimizers for g in o.param_groups):
        group["peak"] = group["lr"]
    return optimizers


# ---------------------------------------------------------------------------------------------------------------------
# The run


class Run:
    """Everything a run needs, so that each part of the loop below is a short function of it."""

    def __init__(self, config, world):
        self.config, self.world, train = config, world, config.train
        self.log = progress.Log(config, world)
        self.commit = code_version()                                    # of the code that runs, whatever is committed meanwhile
        self.device = checkpoint.pick_device(train.device, "train.device", world.local_rank)
        self.dtype, scaled = pick_precision(self.device, train.dtype)
        world.connect(self.device)
        if self.device.type == "cpu":
            keep_freed_memory(12 if train.gradient_checkpointing else None)         # of larger ones the holes add up to a gigabyte (bench/memory.py)
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if train.batch_size % world.size:
            raise UserError(f"train.batch_size: {train.batch_size} windows cannot be shared equally by {world.size} processes")

        T = config.model.max_position_embeddings
        self.train_data, self.val_data, self.meta, self.tokenizer = load_data(config, T)
        self.vocab_changed = config.model.vocab_size != self.meta["vocab_size"]
        config.model.vocab_size = self.meta["vocab_size"]
        self.windows_per_step = train.batch_size * train.gradient_accumulation_steps
        self.tokens_per_step = self.windows_per_step * T
        self.steps = train.max_steps or math.ceil(train.epochs * len(self.train_data) / self.windows_per_step)

        torch.manual_seed(train.seed)
        self.model = Model(config.model).to(self.device)                # initialised on the CPU: the same weights on every device
        self.model.gradient_checkpointing, self.model.z_loss = train.gradient_checkpointing, train.z_loss
        self.compiled = pick_compile(self.device, train.compile, self.steps * self.tokens_per_step)
        self.hidden = torch.compile(self.model.hidden) if self.compiled else self.model.hidden
        self.optimizers = make_optimizers(self.model, train, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.ema = {n: p.detach().clone() for n, p in self.model.named_parameters()} if train.ema else None

        self.step, self.evaluated, self.best, self.skipped, self.skipped_in_a_row = 0, -1, math.inf, 0, 0
        self.rows, self.seconds, self.timed_tokens, self.timed_seconds, self.blimp = [], 0.0, 0, 0.0, ""

    def words(self, step):
        return step * self.tokens_per_step / self.meta["tokens_per_word"]

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


MOST_SKIPPED = 20                                                       # steps in a row: a millionth of the scale, so it was not the scale


def train_step(run):
    """One optimiser step; returns (loss, gradient norm). The lessons of the loop are all here."""
    settings, world = run.config.train, run.world
    run.model.train()
    if run.config.model.dropout:
        seed = np.random.SeedSequence([settings.seed, run.step, world.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))                                 # dropout follows from the step: nothing to save for resume
    factor = schedule(run.step, settings, run.steps)
    for group in (g for o in run.optimizers for g in o.param_groups):
        group["lr"] = group["peak"] * factor

    total = torch.zeros((), device=run.device)
    for micro in range(settings.gradient_accumulation_steps):
        first = run.step * run.windows_per_step + micro * settings.batch_size + world.rank
        ids, targets = (t.to(run.device, non_blocking=True) for t in run.train_data.batch(first, settings.batch_size // world.size, world.size))
        with run.autocast():
            loss = batch_loss(run, ids, targets, micro) / settings.gradient_accumulation_steps
        run.scaler.scale(loss).backward()
        total += loss.detach()

    params = [p for p in run.model.parameters() if p.grad is not None]
    world.mean([p.grad for p in params] + [total])
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(params, settings.grad_clip or math.inf)
    loss, norm = total.item(), norm.item()
    if math.isfinite(loss) and math.isfinite(norm):
        run.skipped_in_a_row = 0
        for optimizer in run.optimizers:
            run.scaler.step(optimizer)
    elif run.scaler.is_enabled() and math.isfinite(loss) and run.skipped_in_a_row < MOST_SKIPPED:
        run.skipped += 1                                                # float16 overflowed: no optimiser takes this step, and the scaler halves its scale
        run.skipped_in_a_row += 1
    else:
        raise Diverged(loss, norm)
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)
    run.scaler.update()
    if run.ema:
        torch._foreach_lerp_(list(run.ema.values()), [p.detach() for p in run.model.parameters()], 1 - settings.ema)
    run.step += 1
    return loss, norm


GAPS = 0.2                                                              # of the tokens of a masked window


def batch_loss(run, ids, targets, micro):
    """Mean next-token loss of the windows ids (B, T); of the first train.masked * B of them, loss of filling in what is hidden.

    Masked next-token prediction (GPT-BERT, Charpentier and Samuel 2024): attention looks both ways, some tokens are replaced by
    <unk>, and each is predicted where the token before it stands, so that one model learns both from the same weights.
    """
    world, B, T = run.world, *ids.shape
    n = round(run.config.train.masked * B)
    if not n:
        return run.model.loss(run.hidden(ids), targets)
    draw = np.random.default_rng([run.config.train.seed, run.step, micro]).random((B * world.size, T - 1))  # follows from the step, as everything
    order = draw[world.rank::world.size][:n].argsort(1).argsort(1)      # as many in each window, so that processes weigh the same
    asked = F.pad(torch.from_numpy(order < GAPS * (T - 1)).to(ids.device), (0, 1))       # (n, T): where the next token is hidden
    hide = asked.roll(1, dims=1)
    both_ways = torch.ones(T, T, dtype=torch.bool, device=ids.device)
    filled = run.model.loss(run.hidden(ids[:n].masked_fill(hide, 0), mask=both_ways), targets[:n].masked_fill(~asked, -100))
    causal = run.model.loss(run.hidden(ids[n:]), targets[n:]) if n < B else 0
    return (n * filled + (B - n) * causal) / B


class Diverged(Exception):
    """A loss or gradient that is not a number."""


@contextlib.contextmanager
def averaged_weights(run):
    """The model with its averaged weights, if there are any."""
    if not run.ema:
        yield
        return
    current = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    with torch.no_grad():
        for n, p in run.model.named_parameters():
            p.copy_(run.ema[n])
        yield
        for n, p in run.model.named_parameters():
            p.copy_(current[n])


@torch.no_grad()
def validate(run):
    """Mean loss over the fixed validation windows, which are spread evenly over the held-out text."""
    run.model.eval()
    chosen = np.linspace(0, len(run.val_data) - 1, min(run.config.train.eval_windows, len(run.val_data))).astype(int)
    total = torch.zeros(2, dtype=torch.float64)
    mine, size = chosen[run.world.rank::run.world.size], run.config.train.batch_size
    for i in range(0, len(mine), size):
        ids, targets = (t.to(run.device) for t in run.val_data.take(mine[i:i + size]))
        with run.autocast():
            total += torch.tensor([run.model.loss(run.model.hidden(ids), targets).item() * len(ids), len(ids)], dtype=torch.float64)
    run.world.mean([total])
    return (total[0] / total[1]).item()


def score_blimp(run):
    """Accuracy on a fixed subset of minimal pairs, to watch; never used to choose anything."""
    from eval_blimp import find_data, quick_accuracy
    run.model.eval()
    return quick_accuracy(run.model, run.tokenizer, find_data(run.config.eval.data, run.meta)[0], run.config.eval.blimp_pairs)


# ---------------------------------------------------------------------------------------------------------------------
# Save and resume


def code_version():
    """The commit of this code, -dirty if it was changed since; empty outside a git checkout."""
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=os.path.dirname(os.path.abspath(__file__))).stdout.strip()
    except OSError:
        return ""


def provenance(run, val_loss):
    """Where a checkpoint came from, in plain data."""
    return {"corpus": run.meta["corpus"], "data": run.meta, "preset": run.config.preset, "settings": dataclasses.asdict(run.config),
            "steps": run.step, "tokens": run.step * run.tokens_per_step, "words": round(run.words(run.step)), "epochs": run.step * run.windows_per_step / len(run.train_data),
            "train_loss": run.rows[-1]["train_loss"] if run.rows else None, "val_loss": val_loss, "val_bits_per_byte": progress.bits_per_byte(val_loss, run.meta["val"]),
            "seconds": run.seconds, "device": progress.device_name(run.device), "dtype": str(run.dtype).removeprefix("torch."),
            "processes": run.world.size, "compiled": bool(run.compiled),
            "commit": run.commit, "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": str(np.__version__)}}


def save_weights(run, name, val_loss):
    """A self-contained checkpoint of the weights as they are, or of their average."""
    weights = run.ema or dict(run.model.named_parameters())
    tree = checkpoint.make(run.config.model, weights, run.tokenizer.model_bytes, provenance(run, val_loss))
    checkpoint.save(os.path.join(run.config.out_dir, name), tree)


BABYLM_WORDS = [*range(1, 10), *range(10, 101, 10)]                     # millions of words seen at which the challenge wants a checkpoint


def passed_words(run):
    """The milestones of train.checkpoint_words that the last step has passed, in millions of words."""
    if run.config.train.checkpoint_words == "none":
        return []
    return [m for m in BABYLM_WORDS if run.words(run.step - 1) < m * 10**6 <= run.words(run.step)]


def same_run(run):
    """What must agree for a run to be continued."""
    s, c = run.config.train, run.config
    return {"model": dataclasses.asdict(c.model), "data": run.meta["train"]["sha256"], "train.seed": s.seed, "train.optimizer": s.optimizer, "train.ema": bool(s.ema),
            "windows per step": run.windows_per_step}


def last_val_loss(run):
    return next((r["val_loss"] for r in reversed(run.rows) if r["val_loss"] != ""), run.best)


STATE = ("step", "evaluated", "best", "skipped", "rows", "seconds")      # plain numbers of a run that last.pt keeps


def save_last(run):
    """Everything needed to go on: weights, optimisers, scaler, averaged weights, position, and the rows of losses.csv."""
    tree = checkpoint.make(run.config.model, dict(run.model.named_parameters()), run.tokenizer.model_bytes, provenance(run, last_val_loss(run)))
    tree["training"] = {"same_run": same_run(run), **{key: getattr(run, key) for key in STATE}, "ema": run.ema,
                        "optimizers": [o.state_dict() for o in run.optimizers], "scaler": run.scaler.state_dict()}
    path = os.path.join(run.config.out_dir, "last.pt")
    try:
        checkpoint.check_weights(run.config.model, tree["weights"])
    except UserError as e:
        raise UserError(f"{path}: not written at step {run.step}, {e}; what was there before is untouched. Try half the learning rate") from None
    checkpoint.save(path, tree)


def resume(run):
    """Continues from last.pt, if train.resume says so; returns whether it did."""
    setting = run.config.train.resume
    path = os.path.join(run.config.out_dir, "last.pt") if setting == "auto" else setting
    if setting == "never" or (setting == "auto" and not os.path.exists(path)):
        return False
    tree = checkpoint.read(path)
    state = tree.get("training")
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds no training state; continue from a last.pt, or start anew with train.resume=never")
    now, then = same_run(run), state.get("same_run")
    if different := [k for k in now if not (isinstance(then, dict) and checkpoint.plain(then) and now[k] == then.get(k))]:
        raise UserError(f"{path}: belongs to another run, {' and '.join(different)} differ; "
                        "set train.resume=never to start anew (this replaces it) or train.out=FOLDER to keep both")
    try:
        checkpoint.check_weights(run.config.model, tree.get("weights"))
        if run.ema:
            checkpoint.check_weights(run.config.model, state.get("ema"))
        check_state(run, state)
    except UserError as e:
        raise UserError(f"{path}: {e}; go on from another copy, or start anew with train.resume=never") from None
    run.model.load_state_dict(tree["weights"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"]):   # today's settings decide learning rate, weight decay and betas
        optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    if state["scaler"]:                                                 # none after a run in another precision
        run.scaler.load_state_dict(state["scaler"])
    for name in run.ema or ():
        run.ema[name].copy_(state["ema"][name])
    for key in STATE:
        setattr(run, key, state[key])
    return True


def check_state(run, state):
    """UserError unless the training state in a last.pt has the parts, types and shapes that this run gives it."""
    def number(x):
        return isinstance(x, (int, float)) and x == x

    def holds(optimizer, saved):
        """Nothing, as before the first step, or for each parameter a tensor of its shape under each of the optimiser's names."""
        params = [p for g in optimizer.param_groups for p in g["params"]]
        names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer"}
        return saved == {} or saved.keys() == set(range(len(params))) and all(
            part.keys() == names and all(checkpoint.plain_tensor(t) and t.is_floating_point() and t.shape == (() if name == "step" else p.shape) and t.float().isfinite().all()
                                         for name, t in part.items()) for p, part in zip(params, (saved[i] for i in range(len(params)))))
    try:
        good = (checkpoint.plain([[state[key] for key in STATE], state["scaler"]])
                and all(isinstance(state[key], int) and low <= state[key] < 2**53 for key, low in (("step", 0), ("evaluated", -1), ("skipped", 0)))
                and number(state["best"]) and number(state["seconds"]) and 0 <= state["seconds"] < math.inf
                and all(list(r) == progress.COLUMNS and all(isinstance(v, (int, float)) or v == "" and key not in ("step", "tokens", "words", "seconds") for key, v in r.items())
                        for r in state["rows"])
                and (state["scaler"] == {} or not run.scaler.is_enabled() or state["scaler"].keys() == run.scaler.state_dict().keys())
                and all(map(number, state["scaler"].values()))
                and len(state["optimizers"]) == len(run.optimizers) and all(holds(o, s["state"]) for o, s in zip(run.optimizers, state["optimizers"])))
    except (LookupError, TypeError, AttributeError):
        good = False
    if not good:
        raise UserError("its training state is damaged")


# ---------------------------------------------------------------------------------------------------------------------
# One run a folder, and how to end it


def lock(folder):
    """Keeps a second run out of the folder for as long as the returned file is open."""
    try:
        os.makedirs(folder, exist_ok=True)
        handle = open(os.path.join(folder, ".lock"), "w")
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); choose another with train.out=FOLDER") from None
    try:
        import fcntl
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except BlockingIOError:
        raise UserError(f"{folder}: another run is writing here; wait for it, or choose another folder with train.out=FOLDER") from None
    except OSError as e:                                                # some network file systems
        print(f"notice: {folder}: this file system has no locks ({e.strerror}); see to it that no second run writes here")
    for leftover in glob.glob(os.path.join(glob.escape(folder), "*.*.????????.tmp")):       # of a write that was killed
        os.unlink(leftover)
    return handle


class Signals:
    """The first SIGINT or SIGTERM asks for an end after this step; a second SIGINT ends at once."""

    def __init__(self):
        self.caught = None
        for s in (signal.SIGINT, signal.SIGTERM):
            signal.signal(s, self.handle)

    def handle(self, number, frame):
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number
        with contextlib.suppress(OSError):                              # not print: the signal may have come in the middle of one
            os.write(2, b"\nending after this step; Ctrl-C again ends at once\n")


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def loop(run, signals):
    """Runs to the last step, evaluating and saving on the way; returns the signal that ended it early, or None."""
    s, main = run.config.train, run.world.main
    bar = tqdm(total=run.steps, initial=run.step, unit="step", disable=None if main else True, dynamic_ncols=True)
    warm = run.step + 3                                                 # compile and first steps are not what a step costs
    told = False
    while True:
        last = run.step >= run.steps
        if (run.step % s.eval_every == 0 or last) and run.evaluated != run.step:
            with averaged_weights(run):
                val_loss = validate(run)
                if run.config.eval.blimp_every and (run.step % run.config.eval.blimp_every == 0 or last):
                    run.blimp = score_blimp(run) if main else ""
            run.evaluated = run.step
            if run.rows:
                run.rows[-1].update(val_loss=val_loss, blimp=run.blimp)
            else:
                run.rows.append(row(run, "", val_loss, run.blimp))
            run.blimp = ""
            if val_loss < run.best:
                run.best = val_loss
                if main:
                    save_weights(run, "ckpt.pt", val_loss)
            run.log(run.step, val_loss=val_loss, bits_per_byte=progress.bits_per_byte(val_loss, run.meta["val"]), blimp=run.rows[-1]["blimp"])
            if main:
                progress.write_curves(run)
                trained = run.rows[-1]["train_loss"]
                bar.write(f"step {run.step:>6}  train loss {f'{trained:.4f}' if trained != '' else '-':>7}  val loss {val_loss:.4f}  "
                          f"{progress.bits_per_byte(val_loss, run.meta['val']):.4f} bits per byte  {run.seconds:.0f} s" + progress.written(run))
        stop = run.world.any(signals.caught is not None)
        if main and (last or stop or (run.step % s.save_every == 0 and run.step)):
            save_last(run)
        if last or stop:
            bar.close()
            return None if last else signals.caught or signal.SIGTERM
        start = time.perf_counter()
        try:
            loss, _ = train_step(run)
        except Diverged as e:
            good = next((r for r in reversed(run.rows) if r["train_loss"] != ""), None)
            raise UserError(f"step {run.step}: loss {e.args[0]}, gradient norm {e.args[1]} at learning rate {s.learning_rate * schedule(run.step, s, run.steps):.3g}; "
                            f"last good loss {good['train_loss'] if good else 'none'}. The checkpoints in {run.config.out_dir} are intact; try half the learning rate, "
                            "a longer train.warmup, train.grad_clip=1 or train.dtype=float32") from None
        elapsed = time.perf_counter() - start
        run.seconds += elapsed
        if run.step > warm:
            run.timed_seconds += elapsed
            run.timed_tokens += run.tokens_per_step
        run.rows.append(row(run, loss, "", ""))
        for millions in passed_words(run) if main else []:
            save_weights(run, f"chck_{millions}M.pt", last_val_loss(run))
        speed = progress.speed(run)
        run.log(run.step, train_loss=loss, lr=run.rows[-1]["lr"], tokens_per_second=speed or "")
        bar.update()
        if main and not told and (run.step > warm + 1 or elapsed > 5 and not run.compiled):
            bar.write(progress.outlook(run, elapsed))
            told = True
        bar.set_postfix(loss=f"{loss:.3f}", lr=f"{run.rows[-1]['lr']:.1e}", tok_s=f"{speed:,.0f}" if speed else "...")


def row(run, train_loss, val_loss, blimp):
    s = run.config.train
    return {"step": run.step, "tokens": run.step * run.tokens_per_step, "words": round(run.words(run.step)),
            "lr": s.learning_rate * schedule(run.step - 1, s, run.steps) if run.step else "",
            "train_loss": train_loss, "val_loss": val_loss, "blimp": blimp, "seconds": round(run.seconds, 3)}


def main(argv=None):
    _, config = configuration.parse_args(argparse.ArgumentParser(description="Train a model on a prepared corpus."), argv)
    world = World()
    held = lock(config.out_dir) if world.main else None                 # noqa: F841  held open until the end
    run = Run(config, world)
    signals = Signals()
    resumed = resume(run)
    if world.any(resumed) and not resumed:
        raise UserError(f"{config.out_dir}: another process of this run finds a last.pt there, this one does not; all machines must share the folder")
    if world.main:
        resolved = {**dataclasses.asdict(config), "presets": {config.preset: {}}}                       # a config file of its own: --config out/NAME/config.yaml
        atomic_write(os.path.join(config.out_dir, "config.yaml"), yaml.safe_dump(resolved, sort_keys=False))
        print("\n".join(progress.banner(run, config.train.learning_rate * schedule(run.steps - 1, config.train, run.steps))))
        if resumed:
            print(f"continuing {config.out_dir} at step {run.step} of {run.steps}")
    try:
        ended_by = loop(run, signals)
    finally:
        run.log.close()
    if world.main:
        print(progress.closing_block(run, ended_by))
    status = 128 + ended_by if ended_by else 0
    if world.size > 1:
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(status)                                                # at the interpreter's own end, a thread of gloo's that is not done yet aborts one run in ten
    return status


if __name__ == "__main__":
    commands.run(main)
