"""A prepared corpus as windows of tokens, in an order that follows from the seed and the step alone."""

from dataclasses import dataclass
import math
import os

from lab.corpus import BABYLM_FILES, read_meta
from lab.files import UserError, file_sha256, load_tokenizer

import numpy as np
import torch

PREPARE_AGAIN = "delete the folder and run prepare.py again"


class TokenDataset:
    """A .bin file of token ids (uint16) as windows of T tokens, each with its targets one token ahead.

    An epoch holds every window once, in an order that follows from (seed, epoch); epochs follow each other without a
    gap. The file is mapped, not read: only the windows of a batch are in memory.
    """

    def __init__(self, path, T, seed=0, sha256=None):
        if sha256 and not (os.path.exists(path) and file_sha256(path) == sha256):
            raise UserError(f"{path}: missing, or not the file that meta.json describes; {PREPARE_AGAIN}")
        self.tokens = np.memmap(path, dtype="<u2", mode="r")
        self.T, self.seed, self.count = T, seed, (len(self.tokens) - 1) // T
        if self.count < 1:
            problem = f"{len(self.tokens)} tokens are less than one window of {T}"
            raise UserError(f"{path}: {problem}; use more text or a smaller model.max_position_embeddings")
        self.epoch, self.order = None, None

    def __len__(self):
        return self.count

    def take(self, windows):
        """These windows, each with the next token, (len(windows), T + 1) int64: inputs [:, :-1], targets [:, 1:]."""
        positions = np.asarray(windows)[:, None] * self.T + np.arange(self.T + 1)
        return torch.from_numpy(self.tokens[positions].astype(np.int64))

    def get_batch(self, first, size, stride=1):
        """`take` of `size` windows, number first, first + stride, ... of the endless sequence of shuffled epochs."""
        chosen = []
        for number in range(first, first + size * stride, stride):
            epoch, place = divmod(number, self.count)
            if epoch != self.epoch:
                self.epoch = epoch
                self.order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            chosen.append(self.order[place])
        return self.take(chosen)

    def spread(self, limit):
        """At most `limit` windows, spread evenly over the text: always the same ones."""
        return np.linspace(0, self.count - 1, min(limit, self.count)).astype(int)


def load_data(config):
    """(train, validation, meta, tokenizer) of data/NAME/; UserError if a part is missing or does not fit the others."""
    folder = config.data_dir
    meta = read_meta(folder)
    if not meta:
        raise UserError(f"{folder}: no prepared corpus; run: {config.command('prepare.py')}")
    require_as_asked(config, meta)
    tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.model"))
    if tokenizer.sha256 != meta["tokenizer_sha256"]:
        raise UserError(f"{folder}/tokenizer.model: not the one that the text was encoded with; {PREPARE_AGAIN}")
    T, seed = config.model.max_position_embeddings, config.train.seed
    train = TokenDataset(os.path.join(folder, "train.bin"), T, seed, meta["train"]["sha256"])
    val = TokenDataset(os.path.join(folder, "val.bin"), T, seed, meta["val"]["sha256"])
    return train, val, meta, tokenizer


def require_as_asked(config, meta):
    """UserError if the command line asks for text prepared in another way; settings it does not name may differ."""
    then = meta.get("settings") or {}
    for key in (word.partition("=")[0] for word in config.arguments):
        section, _, name = key.partition(".")
        if key == "model.vocab_size" and config.model.vocab_size != meta["vocab_size"]:
            raise UserError(
                f"{key}: {config.data_dir} has {meta['vocab_size']} pieces; leave it out, or prepare another corpus "
                "with tokenizer.vocab_size=N data.name=NAME"
            )
        if key not in then or key in ("data.name", "tokenizer.model"):
            continue
        if key == "tokenizer.vocab_size" and then[key] is None:  # an existing tokenizer has its own
            continue
        now = getattr(getattr(config, section), name)
        if name == "source":
            now = os.path.basename(os.path.abspath(now))  # of a folder, which may have moved, its name
        if key == "data.sources" and now is None:
            now = BABYLM_FILES
        if now not in (then[key], "auto"):  # auto: whichever could be had
            raise UserError(
                f"{config.data_dir}: was prepared with {key}={then[key]}, and not {now}; leave {key} out, or prepare "
                f"another corpus: {config.command('prepare.py')} data.name=NAME"
            )


def bits_per_byte(loss, counts):
    """Nats per token -> bits per byte of the text itself; counts: meta.json's {"tokens", "bytes"}."""
    return loss / math.log(2) * counts["tokens"] / counts["bytes"]


@dataclass(frozen=True)
class Plan:
    """How long a run is, in every unit that anybody counts in."""

    steps: int
    windows_per_step: int  # over all processes
    tokens_per_step: int
    words_per_step: float
    epochs_per_step: float

    def words(self, step):
        return step * self.words_per_step


def plan(config, data, meta):
    """The Plan of a run on a prepared corpus; an epoch is one copy of the text, however many train.bin has."""
    settings, T, windows = config.train, data.T, len(data) / meta.get("copies", 1)
    windows_per_step = settings.batch_size * settings.gradient_accumulation_steps
    tokens_per_step = windows_per_step * T
    words_per_step = tokens_per_step / meta["tokens_per_word"]
    if settings.max_words:
        steps = max(1, int(settings.max_words / words_per_step))  # not one word more
    elif settings.max_steps:
        steps = settings.max_steps
    else:
        steps = math.ceil(settings.epochs * windows / windows_per_step)
    return Plan(steps, windows_per_step, tokens_per_step, words_per_step, windows_per_step / windows)
