"""Checkpoint <-> Hugging Face folder.

    python export.py CKPT DIR                     a checkpoint becomes a plain LLaMA for transformers, lm-eval, ...
    python export.py RUN DIR --all-checkpoints    ckpt.pt becomes DIR/main/NAME, chck_1M.pt DIR/chck_1M/NAME, ...
    python export.py CKPT FILE --release          a checkpoint to give away: its weights in bfloat16, half the size
    python export.py --from-hf DIR CKPT           a LLaMA folder, or SLlama as released, becomes a checkpoint

SLlama's tricks save parameters but compute nothing that a LLaMA cannot, so a model is exported by unfolding them: the
narrow table is tiled to its full width, the picked or repeated rows of the attention are written out, the transpose
becomes up_proj, shared layers are copied. No custom code is needed to load the result. Only `embedding: attention` is
refused, since no LLaMA computes it.
"""

import argparse
import functools
import json
import os
import re
import tempfile

from lab import checkpoint, cli
from lab import settings as configuration
from lab.files import UserError, atomic_write, load_tokenizer, read_json, refuse_existing
from lab.hub.babylm import checkpoints
from lab.hub.folder import model_card, read_scores, tokenizer_files
from model import Model, ModelConfig, parameter_counts, sharing

import safetensors.torch
import torch

# ---------------------------------------------------------------------------------------------------------------------
# Unfolding: our weights -> a plain LLaMA's

# Settings that have the same name and meaning in config.json
SAME = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
max_position_embeddings rms_norm_eps rope_theta tie_word_embeddings""".split()


def unfold(model: Model) -> tuple[dict, dict[str, torch.Tensor]]:
    """(settings for config.json, weights by Hugging Face's names) of the LLaMA that computes what `model` does.

    Raises UserError where there is none.
    """
    c = model.config
    if c.embedding == "attention":
        raise UserError("embedding: attention looks at earlier tokens, and no LLaMA's does; it cannot be exported")
    with torch.no_grad():
        every_token = torch.arange(c.vocab_size)[None]  # (1, V)
        weights = {
            "model.embed_tokens.weight": model.embed(every_token)[0],  # (V, h)
            "model.norm.weight": model.norm.weight,
            "lm_head.weight": model.lm_head.weight,
        }
        for i, (layer, group) in enumerate(model.order):
            mlp = model.mlp[group]
            parts = unfold_attention(model.attention[group], c)
            parts["mlp.gate_proj.weight"] = mlp.gate_proj.weight
            parts["mlp.down_proj.weight"] = mlp.down_proj.weight
            parts["mlp.up_proj.weight"] = mlp.down_proj.weight.T if mlp.shared else mlp.up_proj.weight
            parts |= dict(model.layers[layer].named_parameters())  # the two norms
            weights |= {f"model.layers.{i}.{name}": w for name, w in parts.items()}
    settings = {key: getattr(c, key) for key in SAME} | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_key_value_heads": c.num_key_value_heads or c.num_attention_heads,
        "head_dim": c.hidden_size // c.num_attention_heads,
        "attention_bias": c.attention == "rra",
        "torch_dtype": "float32",
    }
    return settings, {name: w.detach().float().clone().contiguous() for name, w in weights.items()}


def unfold_attention(attention, config):
    """The matrices q, k, v (h_kv, h) and o (h, h) that this attention multiplies by; the biases, too, of `rra`."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    out = {}
    if config.attention == "rra":  # a quarter of the rows, four times
        for name in names:
            quarter = getattr(attention, name)
            out[f"self_attn.{name}.weight"] = quarter.weight.repeat(4, 1)
            out[f"self_attn.{name}.bias"] = quarter.bias.repeat(4)
        return out
    unit = torch.eye(config.hidden_size)[None]  # (1, h, h): the unit vectors, as if they were h tokens
    products = (*attention.project(unit), attention.output(unit))  # W e_i is column i of W
    for name, columns in zip(names, products):
        out[f"self_attn.{name}.weight"] = columns[0].T
    return out


# ---------------------------------------------------------------------------------------------------------------------
# And back: the names and settings of a LLaMA folder and of the released SLlama -> ours


def our_name(name: str, config: ModelConfig) -> str:
    """What we call a weight that a folder calls `name`.

    Ours are Hugging Face's names, except that attention and MLP belong to a group of layers, and any layer of the group
    may hold them. The release calls PWA's table shared_weights.weight, saves one of skqa's q_proj and k_proj, and
    SPMLP's matrix as up_proj, down_proj or both.
    """
    if config.tie_word_embeddings and name == "model.embed_tokens.weight":
        return "lm_head.weight"
    name = name.removeprefix("model.").replace("shared_weights.weight", "shared_weights")
    if config.attention == "skqa":
        name = name.replace("k_proj", "q_proj")
    if config.mlp == "shared_projection":
        name = name.replace("up_proj", "down_proj")
    of_group = re.fullmatch(r"layers\.(\d+)\.(self_attn|mlp)\.(.+)", name)
    if not of_group:
        return name
    layer, part, leaf = of_group.groups()
    group = dict(sharing(config)[2]).get(int(layer), layer)
    return f"{part.replace('self_attn', 'attention')}.{group}.{leaf}"


def fold(config: ModelConfig, held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights from a folder's, which may hold a shared one under any of its names, or under several."""
    weights = {}
    for name, w in held.items():
        if name.endswith("rotary_emb.inv_freq"):  # older files hold what follows from rope_theta
            continue
        first = weights.setdefault(our_name(name, config), w)
        if first is not w and not torch.equal(first, w):
            raise UserError(
                f"{name} and another are one weight in this model, but differ here; the released code loses shared "
                "weights on loading and then saves random ones: take the first file it wrote"
            )
    return weights


def untile(weights):
    """`rra`'s attention from a LLaMA's: the first quarter of what `unfold` wrote four times."""
    out = {}
    for name, w in weights.items():
        if ".self_attn." in name:
            tiled, w = w, w[: len(w) // 4]
            if not torch.equal(torch.cat([w] * 4), tiled):
                raise UserError("attention_bias: with biases, only an exported `rra` can be converted")
        out[name] = w
    return out


def our_config(settings: dict) -> ModelConfig:
    """The ModelConfig of a config.json, a LLaMA's or the released SLlama's, which names the tricks its own way.

    Raises UserError.
    """
    released = settings.get("model_type") == "sllama"
    if not released and settings.get("model_type") != "llama":
        raise UserError("model_type: only llama, or the released sllama, can be converted")
    if settings.get("hidden_act", "silu") != "silu":
        raise UserError("hidden_act: only silu can be converted")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError("rope_scaling: only plain rotary positions can be converted")
    values = {"max_position_embeddings": 256 if released else 2048, "rope_theta": 10000.0}  # if it says nothing else
    said = settings | rope
    values |= {key: said[key] for key in SAME if key in said}
    if released:
        embedding = settings.get("emb_reduction_type", "repeat") or "full"
        values["embedding"] = "attention" if embedding == "attn" else embedding
        values["attention"] = settings.get("attn_reduction_type", "pwa") or "mha"
        values["mlp"] = "shared_projection" if settings.get("mlp_reduction", True) else "full"
        values["layer_sharing"] = settings.get("layer_reduction_type", "share") or "none"
        if values["layer_sharing"] == "share":
            values["num_groups"] = settings.get("n_group") or settings.get("num_hidden_layers")
    elif settings.get("attention_bias"):
        values["attention"] = "rra"
    return configuration.model_config(values)


NEEDED = {
    "config.json": "is it a Hugging Face folder?",
    "model.safetensors": "save the model again as one such file, with transformers' save_pretrained",
    "tokenizer.model": "only SentencePiece tokenizers can be converted",
}


def import_folder(folder, path, replace=False) -> ModelConfig:
    """Writes checkpoint `path` from a Hugging Face LLaMA folder or a released SLlama. Raises UserError."""
    refuse_existing(path, replace)
    for name, remedy in NEEDED.items():
        if not os.path.isfile(os.path.join(folder, name)):
            raise UserError(f"{folder}: no {name} in it; {remedy}")
    with checkpoint.reading(folder):
        settings = read_json(os.path.join(folder, "config.json"), "copy the folder again")
        config = our_config(settings)
        tokenizer = load_tokenizer(os.path.join(folder, "tokenizer.model"))
        if tokenizer.vocab_size != config.vocab_size:
            raise UserError(f"vocab_size is {config.vocab_size}, but the tokenizer has {tokenizer.vocab_size} pieces")
        held = safetensors.torch.load_file(os.path.join(folder, "model.safetensors"))
        held = {name: w.float() for name, w in held.items()}
        if settings["model_type"] == "llama" and config.attention == "rra":
            held = untile(held)
        weights = fold(config, held)
        checkpoint.check_finite(weights)
        checkpoint.build_model(config, weights)
    if config.embedding == "attention":
        print("note: the released attention embedding sees the future; here it is causal and computes something else")
    made = {"corpus": f"unknown (converted from {os.path.basename(os.path.abspath(folder))})"}
    checkpoint.save(path, checkpoint.make(config, weights, tokenizer.model_bytes, made))
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def export_folder(path, folder, replace=False, **card) -> int:
    """Writes the Hugging Face folder of checkpoint `path`; returns how many numbers its weights are.

    card: blimp, babylm, license, language of `model_card`. Raises UserError, with `folder` as it was.
    """
    require_free(folder, replace)
    model, ckpt = checkpoint.load_model(path)
    tokenizer = ckpt.tokenizer
    with checkpoint.reading(path):
        settings, weights = unfold(model)
        files = tokenizer_files(tokenizer, ckpt.config.max_position_embeddings)
    numbers = sum(w.numel() for w in weights.values())
    eos = tokenizer.eos_id if tokenizer.eos_id >= 0 else None
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": eos}
    files["generation_config.json"] = json.dumps(ends | {"do_sample": True}, indent=2)
    files["model.safetensors"] = safetensors.torch.save(weights, metadata={"format": "pt"})
    files["README.md"] = model_card(ckpt, numbers, os.path.basename(os.path.abspath(folder)), **card)
    files["config.json"] = json.dumps(settings | ends, indent=2)
    write_folder(folder, files)
    return numbers


def require_free(folder, replace):
    """UserError if `folder` is a file, or if it holds something and that may not be replaced."""
    if os.path.isfile(folder):
        raise UserError(f"{folder}: is a file; give the name of a folder to write")
    if os.path.isdir(folder) and os.listdir(folder):
        refuse_existing(folder, replace)


def write_folder(folder, files):
    """Writes the files {name: content} aside, then moves them in: a full disk is noticed before any is replaced."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
            for name, content in files.items():
                atomic_write(os.path.join(new, name), content)
            for name in files:
                os.replace(os.path.join(new, name), os.path.join(folder, name))
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); choose another folder") from None


def export_run(run, folder, replace=False, **card) -> list[str]:
    """Writes a run's ckpt.pt as DIR/main/NAME, its chck_NM.pt as DIR/chck_NM/NAME, where NAME is DIR's last part.

    The BabyLM pipeline takes the last part of a path for the model's name, and files its results under that name and
    the revision's. Returns the folders. Raises UserError.
    """
    found = {revision: path for revision, path in checkpoints(run).items() if os.path.exists(path)}
    if len(found) < 2:
        raise UserError(f"{run}: no chck_1M.pt, ... beside ckpt.pt; train with train.checkpoint_words=babylm")
    name = os.path.basename(os.path.abspath(folder))
    targets = [os.path.join(folder, revision, name) for revision in found]
    for target in targets:
        require_free(target, replace)
    for path, target in zip(found.values(), targets):
        export_folder(path, target, replace, **card)
        card |= {"blimp": None, "babylm": None}  # the scores are those of main
    return targets


def release(path, target, replace=False):
    """Writes checkpoint `path` to `target` with its weights rounded to bfloat16; it is to be scored again."""
    refuse_existing(target, replace)
    ckpt = checkpoint.load(path)
    weights = {name: w.bfloat16() for name, w in ckpt.weights.items()}
    made = {**ckpt.provenance, "released_from_sha256": ckpt.sha256}
    checkpoint.save(target, checkpoint.make(ckpt.config, weights, ckpt.tokenizer.model_bytes, made))


def parse_arguments(argv):
    p = argparse.ArgumentParser(description="Checkpoint to Hugging Face folder, and back.")
    p.add_argument("source", metavar="CKPT", help="a checkpoint, a run's folder or a Hugging Face folder")
    p.add_argument("target", metavar="DIR", help="the folder to write; for --from-hf and --release the checkpoint")
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--from-hf", action="store_true", help="a LLaMA folder, or a released SLlama, to a checkpoint")
    mode.add_argument("--release", action="store_true", help="a checkpoint to one with its weights in bfloat16")
    mode.add_argument("--all-checkpoints", action="store_true", help="ckpt.pt and each chck_NM.pt of a run's folder")
    p.add_argument("--replace", action="store_true", help="write over what is there")
    card = p.add_argument_group("for the model card")
    blimp = functools.partial(read_scores, key="accuracy", command="eval_blimp.py --json")
    card.add_argument("--blimp", type=blimp, metavar="FILE", help="what eval_blimp.py --json wrote")
    babylm = functools.partial(read_scores, key="main", command="python -m lab.hub.babylm score")
    card.add_argument("--babylm", type=babylm, metavar="FILE", help="the scores.json of lab.hub.babylm")
    card.add_argument("--license", default="unknown", metavar="ID", help="licence of the weights, such as mit")
    card.add_argument("--language", metavar="ID,...", help="of the text, such as nl, where the corpus does not say")
    return p.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    card = {"blimp": args.blimp, "babylm": args.babylm, "license": args.license, "language": args.language}
    if args.from_hf:
        config = import_folder(args.source, args.target, args.replace)
        print(f"parameters: {sum(parameter_counts(config).values())}\ncheckpoint: {args.target}")
    elif args.release:
        release(args.source, args.target, args.replace)
        print(f"checkpoint: {args.target}")
    elif args.all_checkpoints:
        for folder in export_run(args.source, args.target, args.replace, **card):
            print(f"folder: {folder}")
        print("next: docs/babylm.md, step 4, which uploads each to its branch on the Hub")
    else:
        numbers = export_folder(args.source, args.target, args.replace, **card)
        print(f"numbers: {numbers}\nfolder: {args.target}")
        print("transformers loads it as it is; its README.md is the model card, and shows how")


if __name__ == "__main__":
    cli.run(main)
