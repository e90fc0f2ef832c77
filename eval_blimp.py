"""Scores a checkpoint on BLiMP (Warstadt et al. 2020), or on any other folder of minimal pairs.

    python eval_blimp.py out/sllama/ckpt.pt                     # table, and a block of `key: value` at the end
    python eval_blimp.py out/sllama/ckpt.pt --json scores.json --csv pairs.csv --predictions babylm.json --plot blimp.png
    python eval_blimp.py out/llama-26m/ckpt.pt --compare out/sllama/ckpt.pt
    python eval_blimp.py out/llama-26m/ckpt.pt out/sllama/ckpt.pt --html report.html            # a page to browse, see compare_page.py

The rule. A model is right about a pair if it gives the grammatical sentence the higher probability:

    score(sentence) = sum over its tokens of log p(token | BOS and the tokens before it)    EOS is not scored, nothing is divided by the length
    right           = score(good) > score(bad)                                              strictly: a tie, like a NaN, is not knowledge
    accuracy        = mean over the paradigms of the share of pairs that are right          BLiMP has 67 paradigms of 1000 pairs

It is `tokenize`, `log_likelihoods` and `evaluate` below, in float32 with the sums in float64. Each switch under "other rules"
changes one part of it to what some other evaluator does; `--compat babylm` and `--compat lm-eval` set what those two need.

Why it is fast. What a causal model computes for a token depends only on the tokens before it, and the sentences of a paradigm
begin alike. So they are sorted, and runs of neighbours become tries; a trie is one row of a batch, where each token has the
position of its depth and attends to its ancestors. The head is applied once to each token that another one follows, a few
hundred at a time. That leaves 59 % of BLiMP's tokens (32,000 pieces), and under 1 % of padding.
"""
import argparse
import contextlib
import itertools
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from lab import checkpoint, commands, compare_page, report
from lab import settings as configuration
from lab.files import UserError, atomic_write

ROW = 128                                                               # tokens in a trie: the longer, the more is shared; the shorter, the less attention
BLOCK = 16384                                                           # sequences laid out at once, so that memory does not grow with their number

# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def tokenize(tokenizer, sentences, prefixes=None, bos=True, leading_space=False, eos=False):
    """(sequences, starts): each sentence's token ids, a tuple, and the index of the first that is scored, the ones before it being given.

    Given are BOS, or without BOS the first token, as by evaluators that forget it; and what a sentence shares with its prefix.
    """
    one = list(range(tokenizer.vocab_size))                             # an object for each id, instead of one for each token: 60 MB less for BLiMP

    def encode(texts):
        return [(*[tokenizer.bos_id] * bos, *map(one.__getitem__, ids)) for ids in tokenizer.encode_batch([" " * leading_space + text for text in texts])]
    if eos and tokenizer.eos_id < 0:
        raise UserError("--score-eos: the tokenizer has no EOS")
    sequences, starts = encode(sentences), [1] * len(sentences)
    if prefixes is not None:
        starts = [max(1, next((t for t, (a, b) in enumerate(zip(ids, prefix)) if a != b), min(len(ids), len(prefix)))) for ids, prefix in zip(sequences, encode(prefixes))]
    return [(*ids, tokenizer.eos_id) for ids in sequences] if eos else sequences, starts


@torch.no_grad()
def log_likelihoods(model, sequences, starts, dtype="float32", batch_tokens=None, progress=False):
    """log p(sequence[start:] | sequence[:start]) of each list of token ids, in nats: float64 (N).

    model: a module with hidden(ids, positions, mask) -> (B, T, h) and lm_head.weight (V, h), such as model.Model.
    A score that comes out NaN or infinite ends the work: what was not reached is left at 0.
    """
    weight = model.lm_head.weight
    device = weight.device
    cpu = device.type == "cpu"
    batch_tokens = batch_tokens or (2048 if cpu else 65536)
    chunk = max(1, 2**(21 if cpu else 28) // weight.shape[0] // 64) * 64        # tokens whose logits are held at once: 8 MB, a CPU's cache; else 1 GB
    order = np.array(sorted(range(len(sequences)), key=sequences.__getitem__), int)
    blocks = (Tries(sequences, starts, order[k:k + BLOCK]) for k in range(0, len(order), BLOCK))
    scores = np.zeros(len(sequences))
    fast = OneDNN() if cpu and dtype == "float32" else contextlib.nullcontext()
    with evaluation_mode(model), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"), fast, \
            tqdm(total=len(sequences), desc="scoring", unit="sentence", disable=None if progress else True, leave=False) as bar:
        for ids, depth, last, (row, column), node, target, sequence in itertools.chain.from_iterable(tries.batches(batch_tokens) for tries in blocks):
            cuts = np.searchsorted(node, np.arange(0, len(row) + chunk, chunk))
            ids, depth, last, node, target = (torch.from_numpy(a).to(device) for a in (ids, depth, last, node, target))
            i = torch.arange(ids.shape[1], device=device)
            sees = (i <= i[:, None]) & (i[:, None] <= last[:, None, None])      # (B, 1, T, T): token j sees i where j is among i's descendants
            h = model.hidden(ids, depth, sees)[row, column].float()             # (n, h): of the tokens that a scored one follows
            h *= math.log2(math.e)                                              # logits as powers of two: exp2 takes a quarter of exp's time
            logp = []
            for k, lo, hi in zip(range(0, len(h), chunk), cuts, cuts[1:]):
                z = F.linear(h[k:k + chunk], weight).float()                    # (chunk, V)
                z -= z.amax(1, keepdim=True)
                logit = z[node[lo:hi] - k, target[lo:hi]]
                logp.append(logit - z.exp2_().sum(1).log2()[node[lo:hi] - k])   # of each scored token: its logit - logsumexp of all
            np.add.at(scores, sequence, math.log(2) * torch.cat(logp).cpu().double().numpy())
            bar.update(len(np.unique(sequence)))                                # a sequence is in one batch, whole
            if not np.isfinite(scores[sequence]).all():
                break
    return scores


@contextlib.contextmanager
def evaluation_mode(model):
    """No dropout and no TF32 inside, whatever training uses, and as before outside."""
    training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        model.train(training)
        torch.set_float32_matmul_precision(precision)


def score_sentences(model, tokenizer, sentences, prefixes=None, bos=True, leading_space=False, eos=False, mean=False, **how):
    """Log-likelihood of each sentence in nats (mean: per scored token), float64 (N). how: dtype, batch_tokens, progress.

    Raises UserError for a sentence longer than the context and for a score that is NaN or infinite.
    """
    return score_tokens(model, sentences, *tokenize(tokenizer, sentences, prefixes, bos, leading_space, eos), mean, **how)


def score_tokens(model, sentences, sequences, starts, mean=False, **how):
    """score_sentences of what `tokenize` returned. Equal sequences are computed once, so that they tie exactly."""
    for sentence, ids in zip(sentences, sequences):
        if len(ids) - 1 > context_of(model):
            raise UserError(f"a sentence has {len(ids)} tokens, more than the model's context of {context_of(model)}: {sentence[:100]!r}")
        if max(ids, default=0) >= model.lm_head.weight.shape[0]:
            raise UserError(f"token {max(ids)} of {sentence[:100]!r} is not in the model's vocabulary of {model.lm_head.weight.shape[0]}: this is not the model's tokenizer")
    first = {}
    inverse = [first.setdefault(one, len(first)) for one in zip(sequences, starts)]
    scores = log_likelihoods(model, [ids for ids, _ in first], [start for _, start in first], **how)[inverse] if first else np.zeros(0)
    if len(bad := np.flatnonzero(~np.isfinite(scores))):
        raise UserError(f"the log-likelihood of {sentences[bad[0]]!r} is {scores[bad[0]]}: the weights are broken, or the precision is too low for them")
    return scores / np.maximum(1, [len(ids) - start for ids, start in zip(sequences, starts)]) if mean else scores


def context_of(model):
    return model.config.max_position_embeddings if hasattr(model, "config") else math.inf


class Tries:
    """Token sequences, those in `order`, laid out in rows of about ROW tokens, each row a trie of neighbours; the order is that of sorting.

    A token is written once for all sequences of the row that begin alike up to it; parents come before children (preorder),
    so a token's descendants are the ones after it, up to `last`. A sequence's last token is only ever a target and is left out.

    >>> t = Tries([[1, 5, 6, 7], [1, 5, 6, 8], [1, 9, 6]], starts=[1, 1, 1], order=[0, 1, 2])
    >>> t.token.tolist(), t.depth.tolist(), t.last.tolist()                     # 1 -> 5 -> 6 and 1 -> 9; after 6 comes 7 or 8
    ([1, 5, 6, 9], [0, 1, 2, 1], [3, 2, 2, 3])
    """

    def __init__(self, sequences, starts, order):
        length = np.array([max(0, len(sequences[s]) - 1) for s in order])       # tokens to feed in
        column = np.arange(max(1, length.max()))                                # (L)
        grid = np.full((len(order), len(column) + 1), -1, np.int32)             # (N, L + 1)
        grid[np.arange(len(column) + 1) <= length[:, None]] = np.fromiter(itertools.chain.from_iterable(sequences[s] or [-1] for s in order), np.int32)
        inside = column < length[:, None]                                       # (N, L)
        differs = (grid[1:, :-1] != grid[:-1, :-1]) | ~inside[1:] | ~inside[:-1]
        shared = np.r_[0, np.where(differs.any(1), differs.argmax(1), len(column))]     # leading tokens in common with the sequence before
        row, used, rows = [], 0, 0
        for s, own in enumerate(length):
            used += own - shared[s]
            if used > ROW or s == 0:                                            # a new row, which starts from the root again
                shared[s], used, rows = 0, own, rows + 1
            row.append(rows - 1)
        size = np.bincount(row, length - shared).astype(int)                    # of each row
        by_size = np.argsort(size[row], kind="stable")                          # rows of the same size side by side: hardly any padding
        order, length, grid, inside, shared = (a[by_size] for a in (np.array(order), length, grid, inside, shared))

        new = inside & (column >= shared[:, None])
        count = np.cumsum(new).reshape(new.shape)                               # (N, L): tokens written so far
        path = np.maximum.accumulate(np.where(new, count - 1, 0), axis=0)       # (N, L): where each token of each sequence stands
        self.first = np.r_[0, np.cumsum(np.sort(size))]                         # of each row, and the end
        self.token, self.depth = grid[:, :-1][new], np.nonzero(new)[1]
        self.last = np.empty(len(self.token), int)
        self.last[path[inside]] = np.repeat(count[:, -1] - 1, length)           # of the sequences through a token, the last one has the last word
        scored = inside & (column >= np.array([starts[s] for s in order])[:, None] - 1)
        edges = path[scored], grid[:, 1:][scored].astype(int), np.repeat(order, scored.sum(1))
        by_node = np.argsort(edges[0], kind="stable")
        self.node, self.target, self.sequence = (e[by_node] for e in edges)     # of each scored token: where the one before it stands, its id, whose it is

    def batches(self, tokens):
        """Batches of about `tokens` tokens: ids, depth, last (B, T); (row, column) of the n tokens that a scored one follows, n
        being filled up to a multiple of 64; and of each scored token, in order: which of those n it follows, its id, its sequence."""
        size = np.diff(self.first)
        start = 0
        while start < len(size):
            stop = start + 1
            while stop < len(size) and (stop + 1 - start) * size[stop] <= tokens:
                stop += 1
            a, b = self.first[[start, stop]]
            column = np.arange(max(1, size[stop - 1]))
            used = column < size[start:stop, None]                              # (B, T)
            ids, depth, last = np.zeros(used.shape, int), np.zeros(used.shape, int), np.where(used, 0, column)      # padding sees itself
            ids[used], depth[used], last[used] = self.token[a:b], self.depth[a:b], self.last[a:b] - np.repeat(self.first[start:stop], size[start:stop])
            lo, hi = np.searchsorted(self.node, (a, b))
            if lo < hi:
                followed, node = np.unique(self.node[lo:hi], return_inverse=True)
                followed = np.pad(followed, (0, -len(followed) % 64), mode="edge")      # few different sizes: oneDNN sets itself up anew for each
                yield ids, depth, last, tuple(axis[followed - a] for axis in np.nonzero(used)), node, self.target[lo:hi], self.sequence[lo:hi]
            start = stop


class OneDNN(TorchFunctionMode):
    """Float32 products on a CPU by oneDNN instead of MKL, PyTorch's choice, which takes twice as long on AMD processors with AVX-512."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and not kwargs and args[0].dtype == args[1].dtype == torch.float32:
            with contextlib.suppress(AttributeError, NotImplementedError):      # a PyTorch without oneDNN
                return torch.ops.mkldnn._linear_pointwise(args[0], args[1], args[2] if len(args) > 2 else None, "none", [], "")
        return function(*args, **(kwargs or {}))


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation

COMPAT = {"babylm": {"ties_correct": True}, "lm-eval": {"ties_correct": True, "leading_space": True}}


def evaluate(model, tokenizer, pairs, method="full", bos=True, leading_space=False, eos=False, mean=False, ties_correct=False, **how):
    """(result, details) of pairs as report.read_pairs returns them: the dictionary of report.summarize with `warnings` and
    `incomplete`, and {pairs, scores, tokens, right} pair by pair. how: dtype, batch_tokens, progress.

    Raises UserError if no pair is left, and for scores that are NaN or infinite.
    """
    if method != "full":
        pairs = [p for p in pairs if p[method]]
    if not pairs:
        raise UserError(f"--method {method}: no pair has the fields of that method; use full")
    texts, prefixes = zip(*(text for p in pairs for text in (p[method] if method != "full" else ((p["good"], ""), (p["bad"], "")))))
    sequences, starts = tokenize(tokenizer, texts, prefixes if method != "full" else None, bos, leading_space, eos)
    fits = np.array([len(ids) - 1 <= context_of(model) for ids in sequences]).reshape(-1, 2).all(1)
    if not fits.any():
        raise UserError(f"no pair fits into the model's context of {context_of(model)} tokens")
    pairs = [pairs[i] for i in np.flatnonzero(fits)]
    texts, sequences, starts = ([items[i] for i in np.flatnonzero(fits.repeat(2))] for items in (texts, sequences, starts))

    scores = score_tokens(model, texts, sequences, starts, mean, **how).reshape(-1, 2)      # (N, 2): good, bad
    right = scores[:, 0] > scores[:, 1]
    if ties_correct:
        right |= scores[:, 0] == scores[:, 1]
    tokens = np.array([len(ids) - bos - eos for ids in sequences]).reshape(-1, 2)
    result = report.summarize(pairs, scores, tokens, right)

    result["warnings"] = []
    if not fits.all():
        result["warnings"].append(f"{(~fits).sum()} pairs left out: longer than the model's context of {context_of(model)} tokens")
    result["incomplete"] = bool(result["warnings"])
    if result["ties"] - result["identical_pairs"] > 0.01 * result["pairs"]:
        result["warnings"].append(f"{result['ties']:,} ties in {result['pairs']:,} pairs: the model or the precision is degenerate, and the accuracy means little")
    return result, {"pairs": pairs, "scores": scores, "tokens": tokens, "right": right}


def quick_accuracy(model, tokenizer, folder, pairs_per_paradigm):
    """Accuracy on the first pairs of each paradigm's development part, for train.py to log."""
    return evaluate(model, tokenizer, report.read_pairs(folder, pairs_per_paradigm, "dev")[0])[0]["accuracy"]


def find_data(wanted, meta):
    """(folder, why): `wanted`, which is config.yaml's eval.data, if it holds pairs, else the pairs of the corpus that `meta` describes."""
    own = os.path.join("data", str(meta.get("name")), "pairs")
    for folder, why in ((wanted, "eval.data"), (own, "the corpus's own")):
        if os.path.isdir(folder) and any(name.endswith(".jsonl") for name in os.listdir(folder)):
            return folder, why
    raise UserError(f"{wanted}: no minimal pairs there, nor in {own}; `python prepare.py` provides them, or give --data DIR")


def arguments():
    p = argparse.ArgumentParser(description="Score checkpoints on minimal pairs.")
    p.add_argument("checkpoints", nargs="*", metavar="CKPT", help="several give a learning curve; default: ckpt.pt of the preset's run. section.key=value settings may follow")
    p.add_argument("--preset", help="a preset of config.yaml")
    p.add_argument("--config", default="config.yaml", help="settings file (default: config.yaml)")
    p.add_argument("--data", metavar="DIR", help="folder of *.jsonl with sentence_good and sentence_bad (default: eval.data, else the corpus's own pairs)")
    p.add_argument("--max-pairs-per-paradigm", type=int, metavar="N", help="only the first N pairs of each")
    p.add_argument("--allow-incomplete", action="store_true", help="score a BLiMP of which paradigms or pairs are missing; the JSON then says incomplete")
    p.add_argument("--split", choices=["all", "dev", "test"], default="all", help="dev: pairID a multiple of 10, for choosing recipes; test: the others")
    p.add_argument("--compare", metavar="FILE", help="another checkpoint, or the --csv of another run, on the same pairs")
    p.add_argument("--paradigms", action="store_true", help="print every paradigm")
    files = p.add_argument_group("files")
    files.add_argument("--json", metavar="FILE", help="all results")
    files.add_argument("--csv", metavar="FILE", help="sentences, scores and decision of every pair")
    files.add_argument("--predictions", metavar="FILE", help="decisions, in the BabyLM challenge's submission format")
    files.add_argument("--plot", metavar="FILE.png", help="bars by phenomenon; of several checkpoints, accuracy against words seen")
    files.add_argument("--html", metavar="FILE.html", help="a page that compares the checkpoints with the first one, or with that of --compare")
    how = p.add_argument_group("speed and precision")
    how.add_argument("--device", default="auto", help="auto | cpu | cuda | mps")
    how.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the matrix products (default: float32)")
    how.add_argument("--batch-tokens", type=int, metavar="N", help="tokens per forward pass (default: 2048 on a CPU, else 65536)")
    rule = p.add_argument_group("other rules, each to reproduce what somebody computes")
    rule.add_argument("--compat", choices=sorted(COMPAT), help="babylm: the challenge's pipelines since 2024, --ties-correct; lm-eval: --ties-correct --leading-space")
    rule.add_argument("--no-bos", action="store_true", help="no BOS, and so the first token is not scored")
    rule.add_argument("--leading-space", action="store_true", help="score ' ' + sentence")
    rule.add_argument("--score-eos", action="store_true", help="score the end of the sentence too")
    rule.add_argument("--mean-per-token", action="store_true", help="divide by the number of scored tokens")
    rule.add_argument("--ties-correct", action="store_true", help="a tie is right, as where the first maximum is taken")
    rule.add_argument("--method", choices=["full", "one-prefix", "two-prefix"], default="full", help="the paper's other two: score one word after its prefix, in 20 paradigms each")
    return p


def main(argv=None):
    began = time.perf_counter()
    args = arguments().parse_args(argv)
    for name in ("max_pairs_per_paradigm", "batch_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be at least 1")
    overrides = [a for a in args.checkpoints if "=" in a and not os.path.exists(a)]
    paths = [a for a in args.checkpoints if a not in overrides]
    settings = configuration.load_config(args.preset, overrides, args.config) if overrides or not (args.data and paths) else None
    paths = paths or [os.path.join(settings.out_dir, "ckpt.pt")]
    rule = {"method": args.method, "bos": not args.no_bos, "leading_space": args.leading_space, "eos": args.score_eos, "mean": args.mean_per_token,
            "ties_correct": args.ties_correct, **COMPAT.get(args.compat, {})}
    conventions = {**rule, "compat": args.compat, "dtype": args.dtype, "split": args.split, "max_pairs_per_paradigm": args.max_pairs_per_paradigm}
    device = checkpoint.pick_device(args.device)
    compared = args.compare and not args.compare.endswith(".csv")

    data, results = None, []
    for path in paths + [args.compare] * bool(compared):
        model, ckpt = checkpoint.load_model(path, device)
        ckpt.weights = None                                             # the model has its own
        if data is None:
            folder, why = (args.data, "--data") if args.data else find_data(settings.eval.data, ckpt.provenance.get("data") or {})
            pairs, data = report.read_pairs(folder, args.max_pairs_per_paradigm, args.split)
            if data["incomplete"] and not args.allow_incomplete:
                raise UserError(f"{folder}: {'; '.join(data['warnings'])}. Mend the folder, or score what is there with --allow-incomplete")
            print(f"{data['benchmark']}: {len(pairs):,} pairs of {folder} ({why})", flush=True)
        start = time.perf_counter()
        result, details = evaluate(model, ckpt.tokenizer, pairs, dtype=args.dtype, batch_tokens=args.batch_tokens, progress=True, **rule)
        result.update(checkpoint=path, corpus=ckpt.provenance.get("corpus"), words=ckpt.provenance.get("words"), steps=ckpt.provenance.get("steps"),
                      parameters=sum(p.numel() for p in model.parameters()), bits_per_byte=ckpt.provenance.get("val_bits_per_byte"),
                      benchmark=data["benchmark"], data=data["data"], warnings=data["warnings"] + result["warnings"], incomplete=data["incomplete"] or result["incomplete"],
                      conventions=conventions, sha256={"checkpoint": ckpt.sha256, "tokenizer": ckpt.tokenizer.sha256, "data": data["sha256"]},
                      device=str(device), torch=torch.__version__, scoring_seconds=time.perf_counter() - start)
        results.append((result, details))
    other = results.pop() if compared else None
    result, details = results[-1]
    evaluations = [other] * bool(compared) + results                    # of the page
    if args.html and any(d["pairs"] != details["pairs"] for _, d in evaluations):
        raise UserError("--html: the models have different contexts, and so scored different pairs")
    if args.compare:
        right = other[1]["right"] if compared else report.read_decisions(args.compare, details["pairs"])
        if len(right) != len(details["right"]):
            raise UserError(f"--compare {args.compare}: the two models have different contexts, and so scored different pairs")
        result["comparison"] = {"with": args.compare, "accuracy": other[0]["accuracy"] if compared else None, **report.compare(details["pairs"], details["right"], right)}
    result["seconds"] = time.perf_counter() - began

    print("\n" + report.table([r for r, _ in results], args.paradigms))
    print("\n" + report.block(result))
    if args.json:
        atomic_write(args.json, json.dumps({**result, "checkpoints": [r for r, _ in results]} if len(results) > 1 else result, indent=1))
    if args.csv:
        atomic_write(args.csv, report.pairs_csv(**details, checkpoint=result["sha256"]["checkpoint"][:16], rule=report.rule(conventions)))
    if args.predictions:
        atomic_write(args.predictions, json.dumps(report.predictions(details["pairs"], details["right"])))
    if args.plot:
        atomic_write(args.plot, lambda f: report.plot([r for r, _ in results], f))
    if args.html:
        atomic_write(args.html, compare_page.page(evaluations))


if __name__ == "__main__":
    commands.run(main)
