"""Scores a checkpoint on BLiMP (Warstadt et al. 2020), or on any other folder of minimal pairs.

    python eval_blimp.py out/sllama/ckpt.pt                     # table, and a block of `key: value` at the end
    python eval_blimp.py out/sllama/ckpt.pt --json scores.json --csv pairs.csv --plot blimp.png
    python eval_blimp.py out/llama-26m/ckpt.pt --compare out/sllama/ckpt.pt
    python eval_blimp.py out/llama-26m/ckpt.pt out/sllama/ckpt.pt --html report.html            # a page to browse
    python eval_blimp.py out/sllama/ckpt.pt --surprisal sentences.txt --csv words.csv           # word by word, in bits

The rule. A model is correct on a pair if it gives the grammatical sentence the higher probability:

    score(sentence) = sum over its tokens of log p(token | BOS and the tokens before it)
                      EOS is not scored, nothing is divided by the length
    correct         = score(good) > score(bad)
                      strictly: a tie, like a NaN, is not knowledge
    accuracy        = mean over the paradigms of the share of pairs that are correct
                      BLiMP has 67 paradigms of 1000 pairs

The forward pass is in float32, the sums are in float64. `score_plainly` below is the score, written plainly. The
command takes lab/score/scoring.py, which gives the same numbers and computes what sentences have in common only once.
`--compat` changes the rule to what another evaluator computes.
"""

import argparse
import json
import os
import time

from lab import checkpoint, cli
from lab import settings as configuration
from lab.files import UserError, atomic_write
from lab.report import tables
from lab.run import devices
from lab.score import scoring, statistics
from lab.score.pairs import find_data, read_pairs

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

# ---------------------------------------------------------------------------------------------------------------------
# The rule


@torch.no_grad()
def score_plainly(model, tokenizer, sentences):
    """log p(sentence | BOS) of each sentence, in nats: float64 (N). The model is in float32 and in evaluation mode."""
    sequences = [torch.tensor([tokenizer.bos_id, *ids]) for ids in tokenizer.encode_batch(sentences)]
    lengths = torch.tensor([len(ids) for ids in sequences])  # (N)
    ids = pad_sequence(sequences, batch_first=True)  # (N, T)
    logits = model(ids[:, :-1])  # (N, T - 1, V): at t, of the token after t
    logp = logits.log_softmax(-1)
    logp = logp.gather(-1, ids[:, 1:, None]).squeeze(-1)  # (N, T - 1): of the token that does come
    padding = torch.arange(1, ids.shape[1]) >= lengths[:, None]  # (N, T - 1)
    return logp.double().masked_fill(padding, 0).sum(1)


def evaluate(model, tokenizer, pairs, leading_space=False, ties_correct=False, ties_half=False, **how):
    """(result, details) of pairs as lab.score.pairs.read_pairs returns them.

    result: the dictionary of statistics.summarize with `warnings` and `incomplete`; details: {pairs, scores and tokens
    (N, 2) of (good, bad), correct (N)}. how: dtype, batch_tokens, progress.
    ties_half: a tie counts as half in result; in details a coin decides it, the same one each time.
    Raises UserError if no pair fits into the model's context, and for scores that are NaN or infinite.
    """
    sentences = []
    for pair in pairs:
        sentences += [pair["good"], pair["bad"]]
    sequences = scoring.tokenize(tokenizer, sentences, leading_space)
    tokens = np.array([len(ids) - 1 for ids in sequences]).reshape(-1, 2)  # (N, 2), BOS not counted

    context = scoring.context_of(model)
    fits = (tokens <= context).all(1)
    if not fits.any():
        raise UserError(f"no pair fits into the model's context of {context} tokens")
    kept = np.flatnonzero(fits)
    sentences = [sentences[i] for i in np.flatnonzero(fits.repeat(2))]
    sequences = [sequences[i] for i in np.flatnonzero(fits.repeat(2))]
    pairs, tokens = [pairs[i] for i in kept], tokens[kept]

    scores = scoring.score_sequences(model, sentences, sequences, **how).reshape(-1, 2)
    good, bad = scores.T
    correct = good >= bad if ties_correct else good > bad
    credit = correct
    if ties_half:
        tie = good == bad
        credit = correct + tie / 2
        correct = correct | tie & (np.random.default_rng(0).random(len(tie)) < 0.5)

    result = statistics.summarize(pairs, scores, credit)
    if ties_half:
        result["accuracy_range"] = [result["accuracy_strict"], result["accuracy_ties_correct"]]
    warnings = []
    if not fits.all():
        warnings.append(f"{(~fits).sum()} pairs left out: longer than the model's context of {context} tokens")
    result["incomplete"] = bool(warnings)
    if result["ties"] - result["identical_pairs"] > 0.01 * result["pairs"]:
        warnings.append(
            f"{result['ties']:,} ties in {result['pairs']:,} pairs: "
            "the model or the precision is degenerate, and the accuracy means little"
        )
    result["warnings"] = warnings
    return result, {"pairs": pairs, "scores": scores, "tokens": tokens, "correct": correct}


def quick_accuracy(model, tokenizer, folder, pairs_per_paradigm):
    """Accuracy on the first pairs of each paradigm's development part, for train.py to log."""
    pairs, _ = read_pairs(folder, pairs_per_paradigm, "dev")
    result, _ = evaluate(model, tokenizer, pairs)
    return result["accuracy"]


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


def parse_arguments(argv):
    p = argparse.ArgumentParser(description="Score checkpoints on minimal pairs.")
    p.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CKPT",
        help="several give a learning curve; default: ckpt.pt of the preset's run. "
        "section.key=value settings may follow",
    )
    p.add_argument("--preset", help="a preset of config.yaml")
    p.add_argument("--config", default="config.yaml", help="settings file (default: config.yaml)")
    p.add_argument(
        "--data",
        metavar="DIR",
        help="folder of *.jsonl with sentence_good and sentence_bad (default: eval.data, else the corpus's own pairs)",
    )
    p.add_argument("--max-pairs-per-paradigm", type=int, metavar="N", help="only the first N pairs of each")
    p.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="score a BLiMP of which paradigms or pairs are missing; the JSON then says incomplete",
    )
    p.add_argument(
        "--split",
        choices=["all", "dev", "test"],
        default="all",
        help="dev: pairID a multiple of 10, for choosing recipes; test: the others",
    )
    p.add_argument(
        "--compat",
        choices=[*COMPAT, "babylm"],
        help="another evaluator's rule. babylm-2025: a tie is correct; babylm-2026 (also: babylm): a coin "
        "decides a tie, it counts as half; lm-eval: a tie is correct, ' ' + sentence is scored",
    )
    p.add_argument("--compare", metavar="CKPT2", help="another checkpoint, on the same pairs")
    p.add_argument(
        "--surprisal",
        metavar="FILE",
        help="no pairs: the surprisal of each word of FILE, which holds a sentence a line, goes to --csv",
    )
    p.add_argument("--paradigms", action="store_true", help="print every paradigm")
    p.add_argument("--device", default="auto", help="auto | cpu | cuda | mps")
    p.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the matrix products (default: float32)"
    )
    files = p.add_argument_group("files")
    files.add_argument("--json", metavar="FILE", help="all results")
    files.add_argument("--csv", metavar="FILE", help="sentences, scores and decision of every pair; or the words")
    files.add_argument("--predictions", metavar="FILE", help="decisions, in the BabyLM challenge's submission format")
    files.add_argument(
        "--plot", metavar="FILE.png", help="bars by phenomenon; of several checkpoints, accuracy against words seen"
    )
    files.add_argument(
        "--html",
        metavar="FILE.html",
        help="a page that compares the checkpoints with the first one, or with that of --compare",
    )
    args = p.parse_args(argv)
    if args.max_pairs_per_paradigm is not None and args.max_pairs_per_paradigm < 1:
        raise UserError("--max-pairs-per-paradigm: must be at least 1")
    if args.surprisal:
        require_only_words(args)
    if args.compat == "babylm":
        print(f"--compat babylm means {NEWEST}, where a coin decides a tie; in babylm-2025 a tie is correct")
        args.compat = NEWEST
    return args


def require_only_words(args):
    """UserError unless --surprisal comes with what it needs and nothing that it would ignore."""
    if not args.csv:
        raise UserError("--surprisal: give --csv FILE for the words")
    for name in ("data", "max_pairs_per_paradigm", "compat", "compare", "json", "predictions", "plot", "html"):
        if getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: is for pairs, and --surprisal scores words; leave out one of them")


def main(argv=None):
    began = time.perf_counter()
    args = parse_arguments(argv)
    overrides = [word for word in args.checkpoints if "=" in word and not os.path.exists(word)]
    paths = [word for word in args.checkpoints if word not in overrides]
    settings = None  # needed only where something is left to them
    if overrides or not (args.data or args.surprisal) or not paths:
        settings = configuration.load_config(args.preset, overrides, args.config)
    paths = paths or [os.path.join(settings.out_dir, "ckpt.pt")]
    device = devices.pick_device(args.device)
    if args.surprisal:
        write_surprisals(args, paths, device)
        return

    evaluations, other = evaluate_checkpoints(args, paths, settings, device)
    results = [result for result, _ in evaluations]
    result, details = evaluations[-1]
    if other:
        require_same_pairs([other, evaluations[-1]], "--compare")
        result["comparison"] = {
            "with": args.compare,
            "accuracy": other[0]["accuracy"],
            **statistics.compare(details["pairs"], details["correct"], other[1]["correct"]),
        }
    if args.html:
        on_page = [other, *evaluations] if other else evaluations  # each is compared with the first
        require_same_pairs(on_page, "--html")
    result["seconds"] = time.perf_counter() - began

    print("\n" + tables.table(results, args.paradigms))
    print("\n" + tables.block(result))
    if args.json:
        everything = {**result, "checkpoints": results} if len(results) > 1 else result
        atomic_write(args.json, json.dumps(everything, indent=1))
    if args.csv:
        origin = {"checkpoint": result["sha256"]["checkpoint"][:16], "rule": tables.rule(result["conventions"])}
        atomic_write(args.csv, tables.pairs_csv(**details, **origin))
    if args.predictions:
        atomic_write(args.predictions, json.dumps(tables.predictions(details["pairs"], details["correct"])))
    if args.plot:
        from lab.report import plots

        atomic_write(args.plot, lambda f: plots.plot(results, f))
    if args.html:
        from lab.report import page

        atomic_write(args.html, page.page(on_page))


def evaluate_checkpoints(args, paths, settings, device):
    """([(result, details)] of the checkpoints, that of --compare or None), all of the same pairs."""
    pairs, evaluations = None, []
    for path in paths + ([args.compare] if args.compare else []):
        model, ckpt = checkpoint.load_model(path, device)
        ckpt.weights = None  # the model has its own
        if pairs is None:
            pairs, data = read_data(args, settings, ckpt.provenance)
        evaluations.append(evaluate_checkpoint(model, ckpt, pairs, data, args, device))
    other = evaluations.pop() if args.compare else None
    return evaluations, other


def read_data(args, settings, provenance):
    """(pairs, info) of --data, or of what settings and the first checkpoint's corpus say."""
    if args.data:
        folder, why = args.data, "--data"
    else:
        folder, why = find_data(settings.eval.data, provenance.get("data") or {})
    pairs, data = read_pairs(folder, args.max_pairs_per_paradigm, args.split)
    if data["incomplete"] and not args.allow_incomplete:
        raise UserError(
            f"{folder}: {'; '.join(data['warnings'])}. Mend the folder, or score what is there with --allow-incomplete"
        )
    print(f"{data['benchmark']}: {len(pairs):,} pairs of {folder} ({why})", flush=True)
    return pairs, data


def evaluate_checkpoint(model, ckpt, pairs, data, args, device):
    """(result, details) of `evaluate`, the result with where its numbers come from."""
    start = time.perf_counter()
    changes = COMPAT.get(args.compat, {})
    result, details = evaluate(model, ckpt.tokenizer, pairs, dtype=args.dtype, progress=True, **changes)
    origin = ckpt.provenance
    result.update(
        checkpoint=ckpt.path,
        corpus=origin.get("corpus"),
        words=origin.get("words"),
        steps=origin.get("steps"),
        parameters=sum(p.numel() for p in model.parameters()),
        bits_per_byte=origin.get("val_bits_per_byte"),
        benchmark=data["benchmark"],
        data=data["data"],
        warnings=data["warnings"] + result["warnings"],
        incomplete=data["incomplete"] or result["incomplete"],
        conventions={
            **RULE,
            **changes,
            "compat": args.compat,
            "dtype": args.dtype,
            "split": args.split,
            "max_pairs_per_paradigm": args.max_pairs_per_paradigm,
        },
        sha256={"checkpoint": ckpt.sha256, "tokenizer": ckpt.tokenizer.sha256, "data": data["sha256"]},
        device=str(device),
        torch=torch.__version__,
        scoring_seconds=time.perf_counter() - start,
    )
    return result, details


def require_same_pairs(evaluations, flag):
    """UserError if one of the models has a smaller context, and so left out pairs that another scored."""
    _, first = evaluations[0]
    for _, details in evaluations[1:]:
        if details["pairs"] != first["pairs"]:
            raise UserError(f"{flag}: the models have different contexts, and so scored different pairs")


def write_surprisals(args, paths, device):
    """--surprisal: no pairs, but the words of a file."""
    from lab.score import surprisal

    if len(paths) > 1:
        raise UserError("--surprisal: takes one checkpoint; run the command once for each")
    lines = surprisal.read_lines(args.surprisal)
    model, ckpt = checkpoint.load_model(paths[0], device)
    rows = surprisal.word_surprisals(model, ckpt.tokenizer, lines, dtype=args.dtype, progress=True)
    atomic_write(args.csv, surprisal.words_csv(rows))
    print(f"sentences: {len({row[0] for row in rows})}")
    print(f"words: {len(rows)}")
    print(f"tokens: {sum(row[3] for row in rows)}")
    print(f"bits_per_word: {sum(row[4] for row in rows) / len(rows):.6f}")
    print(f"csv: {args.csv}")
    print(f"checkpoint: {paths[0]}")


if __name__ == "__main__":
    cli.run(main)
