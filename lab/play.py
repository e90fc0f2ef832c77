"""A page to play with: python -m lab.play models/llama-3m.pt

Two sentences side by side, each token coloured by its surprisal, the sums, and which one wins by the rule of
eval_blimp.py. A click on a token shows what the model expected in its place, and how it would have continued.
MODEL is what eval_blimp.py takes: a checkpoint, a Hugging Face folder or a name on the Hub.
"""

import argparse
import math

import eval_blimp
from lab import cli
from lab.devices import pick_device
from lab.files import UserError
from lab.report.tables import short_names
from lab.score.scorers import PLL, load_scorer
from lab.text import pocket_english
import sample

import torch

MOST_BITS = 20  # have the deepest colour
STYLE = """.textfield { background: white; color: black; padding: 0 4px }
.token.highlighted .label { color: black }"""  # readable on every colour, light and dark

# ---------------------------------------------------------------------------------------------------------------------
# What the page shows


def surprisals(model, sentence):
    """[(text, bits)] of a sentence's tokens; bits are None for a first token that has no score. Raises UserError."""
    if not sentence.strip():
        raise UserError("there is no sentence; write one, or click on an example")
    (tokens,) = model.encode([sentence])
    if model.given(tokens) > model.context:
        raise UserError(f"a sentence is longer than the model's context of {model.context} tokens; shorten it")
    ends = model.ends(sentence).tolist()
    (logp,) = eval_blimp.score_tokens(model, [tokens])
    bits = [None] * (len(ends) - len(logp)) + [-nats / math.log(2) for nats in logp.tolist()]
    texts = [sentence[start:end] or "·" for start, end in zip([0, *ends], ends)]  # ·: part of a character
    return list(zip(texts, bits))


def verdict(model, first, second):
    """Which of two sentences wins, given their surprisals, as a line of Markdown."""
    sums = [sum(bits for _, bits in tokens if bits is not None) for tokens in (first, second)]
    numbers = f"{sums[0]:.2f} and {sums[1]:.2f} bits" + (f" ({model.method})" if model.masked else " in all")
    if sums[0] == sums[1]:
        return f"**A tie**, neither sentence wins: {numbers}."
    winner = "first" if sums[0] < sums[1] else "second"
    return f"**The {winner} sentence wins**: {numbers}, {abs(sums[0] - sums[1]):.2f} bits apart."


@torch.no_grad()
def look(model, sentence, place, likeliest=10, longest=40):
    """What the model makes of a sentence before the token at a place: ({text: probability} of the tokens it finds
    likeliest there, the sentence up to there with what it writes next). Raises UserError."""
    if model.masked:
        raise UserError("a masked model also reads what follows: it predicts no next word and cannot continue a text")
    (tokens,) = model.encode([sentence])
    start = tokens.end - len(model.ends(sentence))  # of the sentence itself
    ids = list(tokens.ids[: start + place])
    if not ids:
        raise UserError("for this model nothing stands before the first word; click on a later one")

    def logits():  # of the next token: (V)
        return model.logits(torch.tensor([ids], device=model.device))[0, -1]

    top = logits().softmax(-1).topk(likeliest)
    texts = [spelled(model, ids[start:], token) for token in top.indices.tolist()]
    special = getattr(model.tokenizer, "all_special_ids", None) or (model.tokenizer.bos_id, model.tokenizer.eos_id)
    for _ in range(longest):
        p = sample.adjust(logits(), ids, temperature=0.8, top_p=0.95)
        token = torch.multinomial(p, 1).item()
        if token in special or len(ids) == model.context:
            break
        ids.append(token)
    return dict(zip(texts, top.values.tolist())), model.decode(ids[start:])


def spelled(model, before, token):
    """A token's text after the tokens before it: "cat", or "-s" where it continues a word."""
    text = model.decode(before)
    new = model.decode([*before, token])[len(text) :]
    if not new.strip() or "\ufffd" in new:  # a special token, or less than a character
        return model.pieces()[token]
    continues = text[-1:].isalnum() and new[0].isalnum()
    return "-" + new if continues else new.strip()


# ---------------------------------------------------------------------------------------------------------------------
# The page


def serve(model, gr, **how):
    """Builds the page of a Scorer and serves it. gr: the module gradio; how: see its `launch`."""

    def or_error(function, *args):
        try:
            return function(model, *args)
        except UserError as e:
            raise gr.Error(str(e), title="", print_exception=False) from None

    def colored(tokens):  # the more bits a token has, the deeper its colour
        known = [bits for _, bits in tokens if bits is not None]
        colors = {f"{bits:.1f}": f"hsl(12, 90%, {95 - 45 * min(bits / MOST_BITS, 1):.0f}%)" for bits in known}
        value = [(text, None if bits is None else f"{bits:.1f}") for text, bits in tokens]
        return gr.HighlightedText(value, color_map=colors)

    def compare(*sentences):
        found = [or_error(surprisals, sentence) for sentence in sentences]
        return verdict(model, *found), *map(colored, found), *sentences

    def clicked(sentence, event: gr.SelectData):
        return or_error(look, sentence, event.index)

    pairs = [rows[0] for rows in pocket_english.pairs(per_paradigm=1).values()]
    examples = sorted(([pair["sentence_good"], pair["sentence_bad"]] for pair in pairs), key=lambda pair: len(pair[0]))
    (name,) = short_names([model.name])
    with gr.Blocks(title=name, analytics_enabled=False) as page:
        gr.Markdown(f"# {name}\nEach token with its surprisal in bits. Before the first one: `{model.before}`.")
        with gr.Row():
            boxes = [gr.Textbox(examples[0][i], label=f"Sentence {i + 1}", min_width=300) for i in (0, 1)]
        button = gr.Button("Compare", variant="primary")
        result = gr.Markdown()
        with gr.Row():
            views = [gr.HighlightedText(label=f"Sentence {i}: click on a token", min_width=300) for i in (1, 2)]
        with gr.Row():
            expected = gr.Label(label="Likeliest here", show_heading=False, min_width=300)
            text = gr.Textbox(label="The model continues", lines=6, min_width=300)
        compared = [gr.State(), gr.State()]  # the sentences shown, whatever the boxes hold by now
        outputs = [result, *views, *compared]
        gr.Examples(examples, boxes, outputs, compare, run_on_click=True, label="Examples: Pocket English")
        gr.on([page.load, button.click, *(box.submit for box in boxes)], compare, boxes, outputs)
        for sentence, view in zip(compared, views):
            view.select(clicked, sentence, [expected, text])
    theme = gr.themes.Default(font="sans-serif", font_mono="monospace")  # the browser's own: nothing is fetched
    return page.launch(theme=theme, css=STYLE, **how)


def main(argv=None):
    parser = argparse.ArgumentParser(description="A page to play with a model.")
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, a Hugging Face folder or a name on the Hub")
    parser.add_argument("--pll", choices=PLL, help="of a masked model, as in eval_blimp.py")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a model on the Hub brings")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | mps")
    args = parser.parse_args(argv)
    try:
        import gradio
    except ImportError:
        raise UserError("the page needs the package gradio: pip install gradio") from None
    serve(load_scorer(args.model, pick_device(args.device), args.pll, args.trust_remote_code), gradio)


if __name__ == "__main__":
    cli.run(main)
