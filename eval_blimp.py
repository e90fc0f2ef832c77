"""Scores language models on BLiMP (Warstadt et al. 2020), or on any other folder of minimal pairs.

    python eval_blimp.py out/sllama/ckpt.pt                     # table, and a block of `key: value` at the end
    python eval_blimp.py out/sllama/ckpt.pt --json scores.json --csv pairs.csv --plot blimp.png
    python eval_blimp.py out/llama-26m/ckpt.pt --compare out/sllama/ckpt.pt
    python eval_blimp.py out/llama-26m/ckpt.pt out/sllama/ckpt.pt --html report.html            # a page to browse
    python eval_blimp.py gpt2 --data multiblimp/eng --good sen --bad wrong_sen --group phenomenon
    python eval_blimp.py out/sllama/ckpt.pt --surprisal sentences.txt --csv words.csv           # word by word, in bits

The rule. A model is correct on a pair if it gives the grammatical sentence the higher probability:

    score(sentence) = sum over its tokens of log p(token | BOS and the tokens before it)
                      EOS is not scored, nothing is divided by the length
    correct         = score(good) > score(bad)
                      strictly: a tie is not knowledge
    accuracy        = mean over the paradigms of the share of pairs that are correct
                      BLiMP has 67 paradigms of 1000 pairs

The forward pass is in float32, the sums are in float64. `log_probabilities` below is the rule, and scores any causal
model that gives logits. For our own checkpoints lab/score/scoring.py gives the same numbers, and computes only once
what sentences have in common. A masked model gives a sentence no probability: it has a pseudo-log-likelihood, see
--pll. `--compat` changes the rule to what another evaluator computes.
"""

import argparse
import json
import os
import time

from lab import cli, devices
from lab import settings as configuration
from lab.files import UserError, atomic_write, refuse_existing, require_writable
from lab.report import tables
from lab.score import scoring, statistics
from lab.score.pairs import find_data, read_pairs
from lab.score.scorers import PLL, Ours, load_scorer

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

# ---------------------------------------------------------------------------------------------------------------------
# The rule


@torch.no_grad()
def log_probabilities(model, batch):
    """log p of each token of each sentence given the tokens before it, in nats: a list of float64 arrays.

    model: a Scorer, in float32 and in evaluation mode; batch: its Tokens of N sentences, of which the longest has T.
    A sentence's `ids` begin with BOS (or what the model knows instead); ids[first:end] are those that count.
    """
    ids = pad_sequence([torch.tensor(sentence.ids) for sentence in batch], batch_first=True).to(model.device)  # (N, T)
    logits = model.logits(ids[:, :-1])  # (N, T - 1, V): at t, of the token after t
    logp = logits.log_softmax(-1)
    logp = logp.gather(-1, ids[:, 1:, None]).squeeze(-1)  # (N, T - 1): of the token that does come
    logp = logp.cpu().double().numpy()
    return [row[sentence.first - 1 : sentence.end - 1] for row, sentence in zip(logp, batch)]  # row[t] is of ids[t + 1]


def score_tokens(model, sentences, **how):
    """The rule for all sentences (Tokens), in batches: a list of float64 arrays, nats. how: dtype, progress."""
    return scoring.in_batches(model.rule or log_probabilities, model, sentences, **how)


def score(model, texts, sentences, **how):
    """The score of each sentence, in nats: float64 (N). Raises UserError for one that is NaN or infinite."""
    if isinstance(model, Ours):  # the same numbers, faster
        scores = scoring.log_likelihoods(model.model, [sentence.ids for sentence in sentences], **how)
    else:
        scores = np.array([logp.sum() for logp in score_tokens(model, sentences, **how)])
    scoring.require_finite(texts, scores)
    return scores


def decide(scores, ties_correct=False, ties_half=False):
    """scores (pairs, 2), good and bad -> (which pairs are correct, what each adds to the accuracy).

    A pair is correct if its good sentence has the higher score; a tie is not, or is with ties_correct. With ties_half
    it counts as half, and a coin, the same in every run, decides whether it is correct.
    """
    good, bad = scores.T
    correct = good >= bad if ties_correct else good > bad
    if not ties_half:
        return correct, correct
    tie = good == bad
    heads = np.random.default_rng(0).random(len(tie)) < 0.5
    return correct | (tie & heads), correct + tie / 2


def evaluate(model, pairs, leading_space=False, ties_correct=False, ties_half=False, **how):
    """The Result of a Scorer on pairs as lab.score.pairs.read_pairs returns them. how: dtype, batch_tokens, progress.

    Raises UserError if no pair fits into the model's context, and for scores that are NaN or infinite.
    """
    space = " " if leading_space else ""
    texts = []
    for pair in pairs:
        texts += [space + pair["good"], space + pair["bad"]]
    sentences = model.encode(texts)
    fits = np.array([model.given(sentence) <= model.context for sentence in sentences]).reshape(-1, 2).all(1)
    if not fits.any():
        raise UserError(f"no pair fits into the model's context of {model.context} tokens")
    kept = np.flatnonzero(fits.repeat(2))
    texts, sentences = [texts[i] for i in kept], [sentences[i] for i in kept]
    pairs = [pair for pair, fit in zip(pairs, fits) if fit]

    scores = score(model, texts, sentences, **how).reshape(-1, 2)
    tokens = np.array([sentence.end - sentence.first for sentence in sentences]).reshape(-1, 2)
    correct, credit = decide(scores, ties_correct, ties_half)
    result = statistics.summarize(pairs, scores, tokens, correct, credit)
    if ties_half:
        result.accuracy_range = [result.views["strict"], result.views["ties_correct"]]
    if not fits.all():
        result.incomplete = True
        result.warnings.append(f"{(~fits).sum()} pairs left out: longer than the context of {model.context} tokens")
    ties = result.overall.ties
    if ties - result.identical_pairs > 0.01 * len(pairs):
        result.warnings.append(
            f"{ties:,} ties in {len(pairs):,} pairs: "
            "the model or the precision is degenerate, and the accuracy means little"
        )
    return result


def quick_accuracy(model, tokenizer, folder, pairs_per_paradigm):
    """Accuracy on the first pairs of each paradigm's development part, for train.py to log."""
    pairs, _ = read_pairs(folder, pairs_per_paradigm, "dev")
    return evaluate(Ours(model, tokenizer), pairs).overall.accuracy


# ---------------------------------------------------------------------------------------------------------------------
# The command

# The rule as --json records it, and what each --compat changes
RULE = {"method": "full", "bos": True, "leading_space": False, "eos": False, "mean": False, "ties_correct": False}
COMPAT = {
    "babylm-2025": {"ties_correct": True},  # the first of equal scores wins, the good one
    "babylm-2026": {"ties_half": True},  # a coin decides
    "lm-eval": {"ties_correct": True, "leading_space": True},
}
NEWEST = "babylm-2026"
OUTPUTS = ("json", "csv", "predictions", "plot", "html")
ONLY_PAIRS = "data good bad group max_pairs_per_paradigm compat compare json predictions plot html".split()


MODEL_HELP = """a checkpoint, a Hugging Face folder or a name on the Hub, causal or masked, or ngram:FOLDER of a
prepared text; several give a learning curve; default: ckpt.pt of the preset's run. section.key=value settings may
follow"""
PLL_HELP = "a masked model sees all other tokens (original, default), or all but the rest of the word (l2r)"
COMPAT_HELP = """another evaluator's rule. babylm-2025: a tie is correct; babylm-2026 (also: babylm): a coin decides a
tie, it counts as half; lm-eval: a tie is correct, and " " + sentence is scored"""
DATA_HELP = "folder of *.jsonl, *.csv or *.tsv (default: eval.data, else the pairs of the model's own corpus)"


def parse_arguments(argv):
    p = argparse.ArgumentParser(description="Score language models on minimal pairs, or word by word.")
    p.add_argument("models", nargs="*", metavar="MODEL", help=MODEL_HELP)
    p.add_argument("--compare", metavar="MODEL2", help="another model, on the same pairs")
    p.add_argument("--pll", choices=PLL, help=PLL_HELP)
    p.add_argument("--trust-remote-code", action="store_true", help="run the code that a model on the Hub brings")
    p.add_argument("--compat", choices=[*COMPAT, "babylm"], help=COMPAT_HELP)
    p.add_argument("--device", default="auto", help="auto | cpu | cuda | mps")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the matrix products")
    p.add_argument("--preset", help="a preset of config.yaml")
    p.add_argument("--config", default="config.yaml", help="settings file (default: config.yaml)")

    pairs = p.add_argument_group("pairs")
    pairs.add_argument("--data", metavar="DIR", help=DATA_HELP)
    pairs.add_argument("--good", metavar="COL", help="key or column of the grammatical sentence, if not sentence_good")
    pairs.add_argument("--bad", metavar="COL", help="the same for the ungrammatical one, if not sentence_bad")
    pairs.add_argument("--group", metavar="COL", help="the same for the paradigm, if neither UID nor the file's name")
    pairs.add_argument("--max-pairs-per-paradigm", type=int, metavar="N", help="only the first N pairs of each")
    split_help = "dev: pairID a multiple of 10, for choosing recipes; test: the others"
    pairs.add_argument("--split", choices=["all", "dev", "test"], default="all", help=split_help)
    pairs.add_argument("--allow-incomplete", action="store_true", help="score what is there of BLiMP, and say so")
    pairs.add_argument("--paradigms", action="store_true", help="print every paradigm")

    words = p.add_argument_group("words, instead of pairs")
    words.add_argument("--surprisal", metavar="FILE", help="a sentence a line; each word's surprisal goes to --csv")
    space_help = "which space is part of a word: the one before it, as in tokens, or the one after it"
    words.add_argument("--whitespace", choices=["leading", "trailing"], default="leading", help=space_help)

    files = p.add_argument_group("files to write")
    files.add_argument("--json", metavar="FILE", help="all results")
    files.add_argument("--csv", metavar="FILE", help="sentences, scores and decision of every pair; or the words")
    files.add_argument("--predictions", metavar="FILE", help="decisions, in the BabyLM challenge's submission format")
    plot_help = "a .png, .svg or .pdf: accuracy by phenomenon; of several models against words seen"
    files.add_argument("--plot", metavar="FILE", help=plot_help)
    files.add_argument("--html", metavar="FILE", help="a page: each model compared with MODEL2, or with the first")
    files.add_argument("--replace", action="store_true", help="replace these files if they exist")
    args = p.parse_intermixed_args(argv)
    if args.max_pairs_per_paradigm is not None and args.max_pairs_per_paradigm < 1:
        raise UserError("--max-pairs-per-paradigm: must be at least 1")
    if args.surprisal and not args.csv:
        raise UserError("--surprisal: give --csv FILE for the words")
    for name in ONLY_PAIRS:
        if args.surprisal and getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: goes with pairs, but --surprisal scores words; leave out one of the two")
    if args.plot and not args.plot.lower().endswith((".png", ".svg", ".pdf")):
        raise UserError(f"--plot {args.plot}: give a name that ends in .png, .svg or .pdf")
    if args.compat == "babylm":
        print(f"--compat babylm means {NEWEST}, where a coin decides a tie; in babylm-2025 a tie is correct")
        args.compat = NEWEST
    return args


def main(argv=None):
    began = time.perf_counter()
    args = parse_arguments(argv)
    overrides = [word for word in args.models if "=" in word and not os.path.exists(word)]
    names = [word for word in args.models if word not in overrides]
    settings = None  # read only if they decide something
    if overrides or not (args.data or args.surprisal) or not names:
        settings = configuration.load_config(args.preset, overrides, args.config)
    names = names or [os.path.join(settings.out_dir, "ckpt.pt")]
    for path in [getattr(args, output) for output in OUTPUTS]:
        if path:
            require_writable(path)
            refuse_existing(path, args.replace)
    device = devices.pick_device(args.device)
    if args.surprisal:
        write_surprisals(args, names, device)
        return

    results, other = evaluate_models(args, names, settings, device)
    result = results[-1]
    compared = [other, *results] if other else results  # on the page, each with the first
    if (other or args.html) and any(each.pairs != result.pairs for each in compared):
        raise UserError("--compare, --html: the models have different contexts, and so scored different pairs")
    if other:
        result.comparison = statistics.compare(result.pairs, result.correct, other.correct, other.origin.label)
        if other.origin.method != result.origin.method:
            result.warnings.append("scores of two kinds are compared: log-likelihoods and pseudo-log-likelihoods")
    result.seconds = time.perf_counter() - began

    print("\n" + tables.table(results, args.paradigms))
    print("\n" + tables.block(result))
    write_files(args, results, compared)


def write_files(args, results, compared):
    """What --json, --csv, --predictions, --plot and --html ask for."""
    result = results[-1]
    if args.json:
        everything = result.as_json()
        if len(results) > 1:
            everything["checkpoints"] = [each.as_json() for each in results]
        atomic_write(args.json, json.dumps(everything, indent=1))
    if args.csv:
        atomic_write(args.csv, tables.pairs_csv(result))
    if args.predictions:
        chosen = [(pair["uid"], pair["good" if good else "bad"]) for pair, good in zip(result.pairs, result.correct)]
        atomic_write(args.predictions, json.dumps(tables.predictions(chosen)))
    if args.plot:
        from lab.report import plots

        form = os.path.splitext(args.plot)[1].lower().removeprefix(".")
        atomic_write(args.plot, lambda f: plots.plot(results, f, form))
    if args.html:
        atomic_write(args.html, tables.page(compared))


def evaluate_models(args, names, settings, device):
    """(Results of the models, that of --compare or None), all of the same pairs."""
    pairs, results = None, []
    for name in [*names, args.compare] if args.compare else names:
        model = load_scorer(name, device, args.pll, args.trust_remote_code)
        if args.pll and not model.masked and len(names) == 1 and not args.compare:
            raise UserError(f"--pll: goes with masked models, but {name} is a causal one")
        if pairs is None:
            pairs, data = read_data(args, settings, model.origin)
        results.append(evaluate_model(model, pairs, data, args))
    other = results.pop() if args.compare else None
    return results, other


def read_data(args, settings, origin):
    """(pairs, info) of --data, or of what settings and the first model's corpus say."""
    folder, why = args.data, "--data"
    if not folder:
        folder, why = find_data(settings.eval.data, origin.get("data") or {})
    pairs, data = read_pairs(folder, args.max_pairs_per_paradigm, args.split, args.good, args.bad, args.group)
    if data["incomplete"] and not args.allow_incomplete:
        raise UserError(
            f"{folder}: {'; '.join(data['warnings'])}. Mend the folder, or score what is there with --allow-incomplete"
        )
    print(f"{data['benchmark']}: {len(pairs):,} pairs of {folder} ({why})", flush=True)
    return pairs, data


def evaluate_model(model, pairs, data, args):
    """The Result of `evaluate`, with where its numbers come from."""
    start = time.perf_counter()
    changes = COMPAT.get(args.compat, {})
    if args.compat and args.compat.startswith("babylm"):
        model.begin_as_its_tokenizer_does()
    result = evaluate(model, pairs, dtype=args.dtype, progress=True, **changes)
    result.warnings = data["warnings"] + result.warnings
    result.incomplete = data["incomplete"] or result.incomplete
    if not data["benchmark"].startswith("BLiMP"):  # the parts are by BLiMP's pairIDs
        result.views["dev"] = result.views["test"] = None
    asked = ("compat", "dtype", "split", "max_pairs_per_paradigm", "good", "bad", "group")
    known = ("corpus", "words", "steps", "parameters", "bits_per_byte")
    conventions = {**RULE, "method": model.method, "bos": model.before.startswith("BOS"), **changes}
    conventions |= {option: getattr(args, option) for option in asked}
    result.origin = statistics.Origin(
        checkpoint=model.name,
        method=model.method,
        before_first_token=model.before,
        benchmark=data["benchmark"],
        data=data["data"],
        conventions=conventions,
        sha256={**model.sha256, "data": data["sha256"]},
        device=str(model.device),
        torch=torch.__version__,
        scoring_seconds=time.perf_counter() - start,
        **{key: model.origin.get(key) for key in known},
    )
    return result


def write_surprisals(args, names, device):
    """--surprisal: no pairs, but the words of a file."""
    from lab.score import surprisal

    if len(names) > 1:
        raise UserError("--surprisal: takes one model; run the command once for each")
    lines = surprisal.read_lines(args.surprisal)
    model = load_scorer(names[0], device, args.pll, args.trust_remote_code)
    how = {"dtype": args.dtype, "progress": True}
    rows = surprisal.word_surprisals(model, lines, score_tokens, args.whitespace, **how)
    atomic_write(args.csv, surprisal.words_csv(rows))
    print(surprisal.block(rows, model, args.whitespace))
    print(f"csv: {args.csv}")
    print(f"checkpoint: {names[0]}")


if __name__ == "__main__":
    cli.run(main)
