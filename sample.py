"""Text from a checkpoint, printed as it comes.

    python sample.py out/quick/ckpt.pt --prompt "The cat" --num-samples 3

Same checkpoint, prompt and seed, same text. The loop that writes, with its key-value cache, is model.py's `generate`;
here are the ways to pick the next token. In the training text every line starts with BOS, so a predicted BOS (or EOS)
is the end of a line.
"""

import argparse
import sys

from lab import checkpoint, cli
from lab.files import UserError, read_text

import torch

RANGES = {"max_tokens": (1, 10**9), "num_samples": (1, 10**9), "temperature": (0, 100), "top_k": (0, 10**9)}
RANGES |= {"top_p": (1e-6, 1), "repetition_penalty": (0.1, 10), "seed": (0, 2**60)}


def adjust(logits, seen, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    """Next-token probabilities (V) from logits (V); `seen`: the ids so far.

    The repetition penalty divides positive and multiplies negative logits of seen ids (Keskar et al. 2019); top-p keeps
    the smallest set of tokens whose probability reaches p (Holtzman et al. 2020); temperature 0 is the likeliest token.
    """
    logits = logits.clone()
    if repetition_penalty != 1:
        seen = torch.tensor(sorted(set(seen)), device=logits.device)
        old = logits[seen]
        logits[seen] = torch.where(old > 0, old / repetition_penalty, old * repetition_penalty)
    if temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    logits /= temperature
    if top_k:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits[logits < least] = -torch.inf
    p = logits.softmax(-1)
    if top_p < 1:
        ordered, index = p.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        p[index[before >= top_p]] = 0  # a token goes if those before it reach p already
    return p / p.sum()


def text_pieces(tokens, tokenizer, prompt):
    """Yields the text of each of `tokens`, (id, probability) one by one, and its probability.

    The text is "\\n" at the end of a line, and "" for a part of a character, which comes with the last of its bytes.
    """
    line, text = tokenizer.encode(prompt), prompt  # ids and text since the line began
    for token, p in tokens:
        if token in (tokenizer.bos_id, tokenizer.eos_id):
            line, text = [], ""
            yield "\n", p
            continue
        line.append(token)
        now = tokenizer.decode(line)
        new = "" if now.endswith("\ufffd") else now[len(text) :]
        text += new
        yield new, p


def main(argv=None):
    parser = argparse.ArgumentParser(description="Text from a checkpoint.")
    add = parser.add_argument
    add("checkpoint", help="out/NAME/ckpt.pt")
    add("--prompt", action="append", default=[], help="text to go on from (default: a new line); may be repeated")
    add("--prompt-file", help="a file with one prompt a line; - for standard input")
    add("--max-tokens", type=int, default=100, help="tokens per sample (default 100)")
    add("--num-samples", type=int, default=1, help="samples per prompt (default 1)")
    add("--temperature", type=float, default=0.8, help="0 = always the likeliest token (default 0.8)")
    add("--top-k", type=int, default=0, help="only the K likeliest tokens; 0 = all (default)")
    add("--top-p", type=float, default=1.0, help="only the likeliest tokens that make up this probability (default 1)")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: tokens used before get less likely (default 1)")
    add("--seed", type=int, default=0, help="same seed, same text (default 0); sample i uses seed + i")
    add("--stop-at-line", action="store_true", help="end a sample at the end of its first line")
    add("--probabilities", action="store_true", help="one token a line, with the probability the model gave it")
    add("--device", default="cpu", help="cpu (default), cuda, mps")
    args = parser.parse_args(argv)
    for name, (low, high) in RANGES.items():
        if not low <= getattr(args, name) <= high:
            raise UserError(f"--{name.replace('_', '-')}: must be {low} .. {high}")
    prompts = args.prompt
    if args.prompt_file:
        prompts += read_text(args.prompt_file, "give a text file with a prompt in each line").splitlines()
    if any("\ud800" <= c <= "\udfff" for c in "".join(prompts)):  # what Python makes of other bytes in a command line
        raise UserError("the prompt is not UTF-8 text; convert it, for instance with iconv")
    model, ckpt = checkpoint.load_model(args.checkpoint, args.device)
    print(f"{args.checkpoint}, trained on {ckpt.provenance.get('corpus', 'unknown text')}", file=sys.stderr)

    def pick(logits, seen):
        return adjust(logits, seen, args.temperature, args.top_k, args.top_p, args.repetition_penalty)

    for prompt in prompts or [""]:
        start = [ckpt.tokenizer.bos_id, *ckpt.tokenizer.encode(prompt)]
        for i in range(args.num_samples):
            tokens = model.generate(start, args.max_tokens, args.seed + i, pick)
            print(prompt, end="", flush=True)
            for text, p in text_pieces(tokens, ckpt.tokenizer, prompt):
                last = args.stop_at_line and "\n" in text
                if args.probabilities:
                    text = f"\n{p:8.4f}  {text!r}"
                elif last:
                    text = text.partition("\n")[0]
                print(text, end="", flush=True)
                if last:
                    break
            print()
            if len(prompts) > 1 or args.num_samples > 1:
                print("---")


if __name__ == "__main__":
    cli.run(main)
