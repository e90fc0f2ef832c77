"""Text from a checkpoint, printed as it comes.

    python sample.py out/quick/ckpt.pt --prompt "The cat" --num-samples 3

With a key-value cache, so each new token costs one step; same checkpoint, prompt and seed, same text. A text that outgrows
the model's context goes on from its last half. In the training text every line starts with BOS, so a predicted BOS (or EOS)
is the end of a line.
"""
import argparse
import sys

import torch

from lab import checkpoint, commands
from lab.files import UserError
from model import KVCache


def adjust(logits, seen, temperature, top_k, top_p, repetition_penalty):
    """Next-token probabilities (V) from logits (V); `seen`: ids so far.

    Repetition penalty divides positive and multiplies negative logits of seen ids (Keskar et al. 2019); top-p keeps the smallest
    set of tokens whose probability reaches p (Holtzman et al. 2020); temperature 0 is the likeliest token.
    """
    logits = logits.clone()
    if repetition_penalty != 1:
        old = torch.tensor(sorted(set(seen)), device=logits.device)
        logits[old] = torch.where(logits[old] > 0, logits[old] / repetition_penalty, logits[old] * repetition_penalty)
    if temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    logits /= temperature
    if top_k:
        logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -torch.inf
    p = logits.softmax(-1)
    if top_p < 1:
        ordered, index = p.sort(descending=True)
        p[index[ordered.cumsum(0) - ordered >= top_p]] = 0              # a token goes if those before it reach p already
    return p / p.sum()


def generate(model, ids, max_tokens, seed=0, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    """Yields (id, probability the model gave it) of up to `max_tokens` tokens after `ids`, a non-empty list."""
    device, context = model.lm_head.weight.device, model.config.max_position_embeddings
    generator = torch.Generator().manual_seed(seed)
    ids, new, cache = list(ids), list(ids)[-context:], KVCache()
    for _ in range(max_tokens):
        if cache.length + len(new) > context:
            new, cache = ids[-(context // 2):], KVCache()
        logits = model.step(torch.tensor([new], device=device), cache)[0]
        p = adjust(logits, ids, temperature, top_k, top_p, repetition_penalty)
        token = torch.multinomial(p.cpu(), 1, generator=generator).item()
        yield token, logits.softmax(-1)[token].item()
        ids.append(token)
        new = [token]


def stream(model, tokenizer, prompt, write, max_tokens, stop_at_line=False, show_probabilities=False, **settings):
    """Writes the prompt and what follows, whole characters only, as it comes."""
    ids, text = [tokenizer.bos_id, *tokenizer.encode(prompt)], prompt
    write(prompt)
    line = list(ids)
    for token, p in generate(model, ids, max_tokens, **settings):
        ended = token in (tokenizer.bos_id, tokenizer.eos_id)
        if show_probabilities:
            write(f"\n{p:8.4f}  {'end of line' if ended else repr(tokenizer.decode([tokenizer.bos_id, *tokenizer.encode('.'), token])[1:])}")
            if ended and stop_at_line:
                break
            continue
        if ended:
            if stop_at_line:
                break
            write("\n")
            line, text = [token], ""
            continue
        line.append(token)
        now = tokenizer.decode(line[1:])
        if stop_at_line and "\n" in now[len(text):]:                    # where a document holds several lines
            write(now[len(text):].partition("\n")[0])
            break
        if not now.endswith("\ufffd"):                                  # the bytes of a character come one by one
            write(now[len(text):])
            text = now
    write("\n")


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main(argv=None):
    parser = argparse.ArgumentParser(description="Text from a checkpoint.")
    parser.add_argument("checkpoint", help="out/NAME/ckpt.pt")
    parser.add_argument("--prompt", action="append", help="text to go on from; may be given several times (default: the start of a line)")
    parser.add_argument("--prompt-file", help="a file with one prompt a line; - reads them from standard input")
    parser.add_argument("--max-tokens", type=positive, default=100, help="tokens per sample (default 100)")
    parser.add_argument("--num-samples", type=positive, default=1, help="samples per prompt (default 1)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 = always the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="only the K likeliest tokens; 0 = all (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="only the likeliest tokens that make up this probability (default 1 = all)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: tokens used before get less likely (default 1 = off)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default 0); sample i uses seed + i")
    parser.add_argument("--stop-at-line", action="store_true", help="end a sample at the end of its first line")
    parser.add_argument("--probabilities", action="store_true", help="one token a line, with the probability the model gave it")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    args = parser.parse_args(argv)
    for name, wrong, rule in (("temperature", not 0 <= args.temperature < 100, "0 .. 100"), ("top-p", not 0 < args.top_p <= 1, "above 0, at most 1"),
                              ("top-k", args.top_k < 0, "at least 0"), ("seed", not 0 <= args.seed < 2**60, "0 .. 2^60"),
                              ("repetition-penalty", not 0.1 <= args.repetition_penalty <= 10, "0.1 .. 10")):
        if wrong:
            raise UserError(f"--{name}: must be {rule}")
    prompts = list(args.prompt or [])
    if args.prompt_file:
        try:
            with (sys.stdin if args.prompt_file == "-" else open(args.prompt_file, encoding="utf-8")) as f:
                prompts += [line.rstrip("\n") for line in f]
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{args.prompt_file}: cannot be read ({getattr(e, 'strerror', None) or 'not UTF-8 text'})") from None
    if any("\ud800" <= c <= "\udfff" for c in "".join(prompts)):        # what Python makes of other bytes in a command line or standard input
        raise UserError("the prompt is not UTF-8 text; convert it, for instance with iconv")
    model, ckpt = checkpoint.load_model(args.checkpoint, args.device)
    print(f"{args.checkpoint}, trained on {ckpt.provenance.get('corpus', 'unknown text')}", file=sys.stderr)

    def write(text):
        print(text, end="", flush=True)

    for prompt in prompts or [""]:
        for i in range(args.num_samples):
            stream(model, ckpt.tokenizer, prompt, write, args.max_tokens, args.stop_at_line, args.probabilities, seed=args.seed + i,
                   temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, repetition_penalty=args.repetition_penalty)
            if args.num_samples * len(prompts or [""]) > 1:
                print("---")
    return 0


if __name__ == "__main__":
    commands.run(main)
