"""A tokenizer and models whose scores can be written down by hand, random models of every variant, folders of pairs."""

import csv
import functools
import io
import json
import pathlib
import random

import eval_blimp
from lab import checkpoint
from lab.score import pairs
from lab.score.scorers import Ours
from lab.text import pocket_english
from model import Model, ModelConfig
import tokenizer

import numpy as np
import sentencepiece
import torch
import torch.nn as nn
import torch.nn.functional as F

WORDS = "a b c d e f g h".split()  # ids 3 to 10; 0, 1, 2 are unknown, BOS, EOS
V = 3 + len(WORDS)
CONTEXT = 400


class Words:
    """A tokenizer whose tokens are words; " a" is another first word than "a", so that a leading space shows."""

    bos_id, eos_id, vocab_size, sha256 = 1, 2, V, "0" * 64
    byte_lengths = np.array([1, 0, 0] + [2] * len(WORDS))  # a space, and a letter with the space before it

    def encode_batch(self, texts):
        encoded = []
        for text in texts:
            ids = [3 + WORDS.index(word) for word in text.split()]
            encoded.append([0, *ids] if text.startswith(" ") else ids)
        return encoded


class StandIn(nn.Module):
    """`hidden`, `lm_head` (V, features) and `cos` as model.Model has them; called, the logits (B, T, V), in float64."""

    cos = sin = torch.zeros(CONTEXT, 1)

    def __init__(self, head):
        super().__init__()
        self.lm_head = nn.Linear(*head.T.shape, bias=False)
        self.lm_head.weight.data = head

    def forward(self, ids):
        T = ids.shape[1]
        causal = torch.ones(T, T, dtype=torch.bool).tril().expand(len(ids), 1, T, T)
        hidden = self.hidden(ids, torch.arange(T).expand(len(ids), T), causal)
        return hidden.double() @ self.lm_head.weight.double().T


class Table(StandIn):
    """A bigram model: the logits after token i are row i of a table. Of equal rows: a unigram model."""

    def __init__(self, table):
        super().__init__(torch.as_tensor(table, dtype=torch.float32).T.contiguous())

    def hidden(self, ids, positions=None, mask=None):
        return F.one_hot(ids, len(self.lm_head.weight)).float()


class History(StandIn):
    """Logits from the number of times each token is visible and from the position: wrong masks and positions show."""

    def __init__(self, seed=0):
        super().__init__(torch.randn(V, V + CONTEXT, generator=torch.Generator().manual_seed(seed)))

    def hidden(self, ids, positions=None, mask=None):
        seen = mask[:, 0].float() @ F.one_hot(ids, V).float()  # (B, T, V)
        return torch.cat((seen, F.one_hot(positions, CONTEXT).float()), dim=-1)


def score(model, texts, tokenizer=None, **how):
    """The scores of a model.Model or a stand-in as eval_blimp.py computes them: float64 (N), nats."""
    scorer = Ours(model, tokenizer or Words())
    return eval_blimp.score(scorer, texts, scorer.encode(texts), **how)


def plainly(model, tokenizer, texts):
    """The scores of a model.Model or a stand-in by the plain rule, which other models have: float64 (N), nats."""
    scorer = Ours(model, tokenizer)
    return np.array([logp.sum() for logp in eval_blimp.score_tokens(scorer, scorer.encode(texts))])


def uniform(value=0.0):
    return Table(np.full((V, V), value))


def by_hand(model, sequence, start):
    """log p(sequence[start:] | sequence[:start]) of a stand-in, in float64, one token after the other."""
    total = 0.0
    for t in range(start, len(sequence)):
        logits = model(torch.tensor([sequence[:t]]))[0, -1]
        total += (logits[sequence[t]] - logits.logsumexp(0)).item()
    return total


@functools.cache
def train_tokenizer(pieces=400):
    """A real one, of a little Pocket English."""
    return tokenizer.train([line for line in pocket_english.text(3000, seed=1) if line], pieces)


def sentencepiece_model(lines, vocab_size, **options):
    """The bytes of a tokenizer that SentencePiece trains: plain BPE without byte pieces, changed by the options."""
    model = io.BytesIO()
    plain = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    options = {**plain, "hard_vocab_limit": False, "vocab_size": vocab_size, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **options
    )
    return model.getvalue()


def save_checkpoint(path, seed=0):
    """Writes a random model with the tokenizer of 400 pieces, and returns what is in the file.

    Layers are shared; the head makes differences between tokens.
    """
    torch.manual_seed(seed)
    model = Model(ModelConfig(400, 16, 2, 2, 24, max_position_embeddings=32, layer_sharing="share"))
    nn.init.normal_(model.lm_head.weight)
    tree = checkpoint.make(model.config, model.state_dict(), train_tokenizer().model_bytes, {"corpus": "test"})
    checkpoint.save(path, tree)
    return tree


KINDS = {
    "llama": {},
    "grouped": {"num_key_value_heads": 1},
    "sllama": {"embedding": "repeat", "attention": "pwa", "mlp": "shared_projection", "layer_sharing": "share"},
    "embedding attention": {"embedding": "attention"},
    "embedding linear": {"embedding": "linear"},
    "tied, rra, reuse": {"attention": "rra", "layer_sharing": "reuse", "tie_word_embeddings": True},
    "skqa": {"attention": "skqa"},
}


def lively(kind="llama", seed=0):
    """A random model with differences between sentences."""
    torch.manual_seed(seed)
    model = Model(ModelConfig(V, 16, 4, 2, 24, max_position_embeddings=24, **KINDS[kind])).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data.mul_(12)
    return model


def sentences(n=300, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS[:4], k=rng.randint(1, 12))) for _ in range(n)]


def pair(good, bad, **fields):
    return {"sentence_good": good, "sentence_bad": bad, **fields}


def write(folder, files):
    """{name: list of pairs or text} -> a folder of name.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return str(folder)


def load_json(path):
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def load_csv(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def read(folder, files):
    """The pairs of such a folder."""
    return pairs.read_pairs(write(folder, files))[0]
