"""What a training step costs on paper, what this machine can do, and how close each part of the model comes to it.

    python -m bench.speed.roofline --preset sllama --batch 32
    python -m bench.speed.roofline --preset llama-66m --batch 16 --device cuda --compile

On paper (`work`): FLOPs, bytes and exponentials per token, forward and backward, in closed form. Measured (`ceilings`):
matrix products, memory, exp. The least time of a part is then (Williams et al. 2009, with exp beside the products)

    max(FLOPs / rate of products + exponentials / rate of exp, bytes / bandwidth)

and `of ceiling` is that over the time which model.py's own module takes by itself, forward and backward at its real
size, not compiled. The second table says what holds a part back, as shares of that time: its own matrix products, each
done alone at its shapes, where they are slower than the machine's fastest; its exponentials; its bytes. The largest of
the three is what it is `bound by`.

MFU (Chowdhery et al. 2022) is the FLOPs of the products over time and peak. We count the causal half of attention only,
and nothing recomputed.
"""

import argparse
import dataclasses
import platform
import time

from bench.common import write_json
from lab import cli
from lab import settings as configuration
from lab.run import devices
import model as models
from model import Model, parameter_counts, sharing
import train

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s in bfloat16, dense, of the data sheets
PARTS = ["embedding", "attention matrices", "attention", "MLP", "norms, rope", "head, loss", "optimiser"]


# ---------------------------------------------------------------------------------------------------------------------
# On paper


def work(c, tokens, itemsize=2, passes=1):
    """{part: (FLOPs, bytes, exponentials) per token} of a forward and backward pass over `tokens` tokens.

    A product of k numbers is 2k FLOPs, and its backward pass twice as many. Bytes are those that have to move if each
    part were one kernel: what comes in, goes out, or is needed again in the backward pass; weights read twice and their
    gradient written once, in float32. itemsize: bytes of an activation; passes: forward and backward passes per step.
    """
    h, f, V, T = c.hidden_size, c.intermediate_size, c.vocab_size, c.max_position_embeddings
    e = h if c.embedding == "full" else h // c.embedding_factor  # width of the embedding's rows
    kv = (c.num_key_value_heads or c.num_attention_heads) * (h // c.num_attention_heads)
    runs = len(sharing(c)[2])  # layers that are run, shared or not
    seen = (T + 1) / 2  # tokens that a token attends to, on average
    counts = parameter_counts(c)
    P = sum(counts.values())
    held = {part: 12 * n / tokens for part, n in counts.items()}  # bytes of weights and their gradients

    widen = {"linear": e * h, "attention": 2 * e * e + e * h + (e + h) * seen}.get(c.embedding, 0)
    project = {  # multiplications, the output matrix's included
        "mha": 2 * h * h + 2 * h * kv,
        "skqa": 3 * h * h,
        "pwa": h * (h + 2 * kv),
        "rra": (2 * h * h + 2 * h * kv) / 4,
    }[c.attention]
    output = 0 if c.attention == "pwa" else 5 * h  # numbers: in, out; in, gradients of both
    normed = (2 * runs + 1) * h + c.qk_norm * runs * (h + kv)
    return {
        "embedding": (
            6 * widen,
            4 * 2 * (e + h) + held["embedding"] / 3,  # rows, not the whole table, are read
            2 * (seen + h) if c.embedding == "attention" else 0,
        ),
        "attention matrices": (
            6 * runs * project,
            runs * itemsize * (3 * h + 2 * (h + 2 * kv) + output) + held["attention"],
            0,
        ),
        "attention": (
            12 * runs * h * seen,
            runs * itemsize * (3 * (h + 2 * kv) + 3 * h),
            2 * runs * c.num_attention_heads * seen,
        ),
        "MLP": (
            18 * runs * h * f,
            runs * itemsize * (5 * h + 4 * f) + held["mlp"],
            2 * runs * f * (c.hidden_act == "silu"),
        ),
        "norms, rope": (12 * normed + 6 * runs * (h + kv), 4 * (5 * normed + 4 * runs * (h + kv)), 0),
        "head, loss": (6 * h * V, 4 * 2 * h + held["head"], V),
        "optimiser": (15 * P / tokens / passes, 40 * P / tokens / passes, 0),  # clipping: 3 and 12, AdamW: 12 and 28
    }


def model_flops(c):
    """FLOPs of the matrix products per token, forward and backward: what MFU counts."""
    return sum(flops for part, (flops, _, _) in work(c, 1).items() if part not in ("norms, rope", "optimiser"))


def peak(device_name):
    return next((rate for name, rate in PEAKS.items() if name in device_name), None)


# ---------------------------------------------------------------------------------------------------------------------
# Measured


def clock(device):
    """On one thread of a processor, its own time, which other programs do not lengthen; else the time of day."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


LEAST = 0.3  # seconds to measure a function for


def seconds(function, device):
    """Fastest of at least five timings, over LEAST seconds: of ten calls each on a GPU, which queues, else of one."""
    now, calls = clock(device), 10 if device.type == "cuda" else 1

    def synchronize():
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):  # the first calls choose kernels and find memory
        function()
    times = []
    while len(times) < 5 or sum(times) * calls < LEAST:
        synchronize()
        start = now()
        for _ in range(calls):
            function()
        synchronize()
        times.append((now() - start) / calls)
    return min(times)


def ceilings(device, dtype, h, vocab, small=False):
    """{name: (rate per second, unit)}: products of a large square and of the head, float32 and dtype; memory; exp."""
    size, chunk = (8192, 8192) if device.type == "cuda" else (2048, 512)
    stream = 2**28 if device.type == "cuda" else 2**25  # numbers, more than any cache holds
    cached = 2**22 if device.type == "cuda" else 2**18  # numbers that the last cache holds
    if small:
        size, chunk, vocab, stream = 64, 64, min(vocab, 512), 2**12
    products = {
        f"{size} x {size} x {size}": (size, size, size),
        f"logits, {chunk} x {h} x {vocab}": (chunk, h, vocab),
        f"their gradient, {chunk} x {vocab} x {h}": (chunk, vocab, h),
    }
    found = {}
    for kind in {torch.float32, dtype}:
        for what, (n, k, m) in products.items():
            a, b, c = (torch.randn(shape, device=device).to(kind) for shape in ((n, k), (k, m), (n, m)))
            rate = 2 * n * k * m / seconds(lambda a=a, b=b, c=c: torch.mm(a, b, out=c), device)
            found[f"products, {name_of(kind)}, {what}"] = (rate, "FLOP/s")
    a, b = torch.zeros(stream, device=device), torch.zeros(stream, device=device)
    rate = 12 * stream / seconds(lambda: a.add_(b), device)  # a copy would also read what it overwrites
    found["memory, a += b, read and written"] = (rate, "B/s")
    x = torch.randn(cached, device=device).to(dtype)
    y = torch.empty_like(x)
    rate = cached / seconds(lambda: torch.exp(x, out=y), device)
    found[f"exp, {name_of(dtype)}, in the cache"] = (rate, "/s")
    return found


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)


class Products(TorchDispatchMode):
    """Notes the matrix products that run meanwhile, with what they multiply."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in PRODUCTS:
            self.found.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def product_seconds(once, device):
    """How long the matrix products of once() take, each done alone."""
    with Products() as products:
        once()
    alike = {}  # products of equal shapes, in equal layouts
    for function, args, kwargs in products.found:
        key = function, *((a.shape, a.stride()) for a in args)
        alike.setdefault(key, []).append((function, args, kwargs))
    with torch.no_grad():
        return sum(
            len(calls) * seconds(lambda call=calls[0]: call[0](*call[1], **call[2]), device) for calls in alike.values()
        )


def part_times(model, optimizers, batch, dtype, device):
    """{part: (seconds, of its products alone)} of a forward and backward pass, as often as the model runs the part."""
    c, T = model.config, model.config.max_position_embeddings
    runs, h, heads, hs = len(model.order), c.hidden_size, c.num_attention_heads, c.hidden_size // c.num_attention_heads
    kv_heads = c.num_key_value_heads or heads
    ids = torch.randint(3, c.vocab_size, (batch, T), device=device)

    def random(*shape, kind=torch.float32):
        return torch.randn(*shape, device=device).to(kind).requires_grad_()

    def both(forward, *inputs):
        """A function that runs forward() -> tensors and its backward pass from random gradients."""

        def once(gradients=None):
            for t in (*inputs, *model.parameters()):
                t.grad = None
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                outputs = forward()
            gradients = gradients or [torch.randn_like(t) for t in outputs]
            torch.autograd.backward(outputs, gradients)
            return gradients

        gradients = once()
        return lambda: once(gradients)

    x = random(batch, T, h)
    y = random(batch, T, h, kind=dtype)
    q, k, v = (random(batch, T, n, hs, kind=dtype) for n in (heads, kv_heads, kv_heads))  # as the matrices give
    heads_first = [t.detach().transpose(1, 2).requires_grad_() for t in (q, k, v)]  # (B, heads, T, hs)
    rope = tuple(t[:T].view(1, T, 1, -1) for t in (model.cos, model.sin))
    attention, mlp = model.attention[0], model.mlp[0]
    functions = {  # part: [(how often it is run, function)]
        "embedding": [(1, both(lambda: [model.embed(ids)]))],
        "attention matrices": [(runs, both(lambda: [*attention.project(x), attention.output(y)], x, y))],
        "attention": [(runs, both(lambda: [models.attend(*heads_first)], *heads_first))],
        "MLP": [(runs, both(lambda: [mlp(x)], x))],
        "norms, rope": [
            (2 * runs + 1, both(lambda: [model.norm(x)], x)),
            (runs, both(lambda: [models.apply_rotary_emb(t, *rope) for t in (q, k)], q, k)),
        ],
        "head, loss": [(1, both(lambda: [model.loss(x, ids)], x))],
    }
    times = {
        part: (
            sum(n * seconds(once, device) for n, once in several),
            sum(n * product_seconds(once, device) for n, once in several),
        )
        for part, several in functions.items()
    }

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    times["optimiser"] = seconds(update, device), product_seconds(update, device)
    return times


def pass_time(model, batch, dtype, device, compiled):
    """Seconds of a whole forward and backward pass."""
    c, hidden = model.config, torch.compile(model.hidden) if compiled else model.hidden
    ids = torch.randint(3, c.vocab_size, (batch, c.max_position_embeddings), device=device)

    def once():
        model.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model.loss(hidden(ids), ids)
        loss.backward()

    return seconds(once, device)


# ---------------------------------------------------------------------------------------------------------------------


def measure(config, batch, dtype, device, compiled=False, flops_peak=None, small=False):
    """Everything the table shows, as plain numbers; times in seconds per token."""
    c, passes = config.model, config.train.gradient_accumulation_steps
    tokens = batch * c.max_position_embeddings
    torch.manual_seed(0)
    model = Model(c).to(device).train()
    rates = {what: rate for what, (rate, _) in ceilings(device, dtype, c.hidden_size, c.vocab_size, small).items()}

    def fastest(kind):
        return max(rate for what, rate in rates.items() if what.startswith(kind))

    products, memory, exp = fastest(f"products, {name_of(dtype)}"), fastest("memory"), fastest("exp")
    whole = pass_time(model, batch, dtype, device, compiled)
    times = part_times(model, train.make_optimizers(model, config.train, device), batch, dtype, device)
    parts = {}
    for part, (flops, moved, exps) in work(c, tokens, dtype.itemsize, passes).items():
        least = max(flops / products + exps / exp, moved / memory)
        measured, alone = (t / tokens / (passes if part == "optimiser" else 1) for t in times[part])
        bounds = {"products": alone / measured, "exp": exps / exp / measured, "memory": moved / memory / measured}
        parts[part] = {
            "flops": flops,
            "bytes": moved,
            "exps": exps,
            "least": least,
            "measured": measured,
            "of_ceiling": least / measured,
            "bounds": bounds,
        }
    step = whole / tokens + parts["optimiser"]["measured"]
    best = flops_peak or peak(devices.device_name(device)) or products
    return {
        "preset": config.preset,
        "batch": batch,
        "window": c.max_position_embeddings,
        "dtype": name_of(dtype),
        "device": devices.device_name(device),
        "compiled": compiled,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "clock": clock(device).__name__,
        "ceilings": rates,
        "parts": parts,
        "step": step,
        "tokens_per_second": 1 / step,
        "least": sum(part["least"] for part in parts.values()),
        "model_flops": model_flops(c),
        "peak_flops": best,
        "mfu": model_flops(c) / step / best,
    }


def row(name, p, measured, share, of_ceiling):
    return (
        f"{name:<20}{p['flops'] / 1e3:>10,.1f}{p['bytes'] / 1e3:>9,.1f}{p['exps']:>9,.0f}{p['least'] * 1e6:>11.3f}"
        f"{measured * 1e6:>13.3f}{share:>8.1%}{of_ceiling:>12.1%}"
    )


def table(r):
    """Lines of at most 100 characters."""
    compiled = "on" if r["compiled"] else "off"
    clock_name = "seconds of the processor" if r["clock"] == "process_time" else "seconds"
    lines = [
        f"{r['preset']}, {r['batch']} x {r['window']} tokens a pass, {r['dtype']}, compile {compiled}",
        f"{r['device']}; torch {r['torch']}; {clock_name}",
        "",
    ]
    units = {"products": "GFLOP/s", "memory": "GB/s", "exp": "G/s"}
    for what, rate in r["ceilings"].items():
        lines.append(f"{what:<56}{rate / 1e9:>12,.2f} {units[what.split(',')[0]]}")
    lines.append("")
    lines.append(
        f"{'per token':<20}{'kFLOP':>10}{'kB':>9}{'exp':>9}{'least us':>11}{'measured us':>13}"
        f"{'share':>8}{'of ceiling':>12}"
    )
    step, parts = r["step"], r["parts"]
    for name, p in parts.items():
        lines.append(row(name, p, p["measured"], p["measured"] / step, p["of_ceiling"]))
    rest = step - sum(p["measured"] for p in parts.values())
    lines.append(f"{'sums, copies, fusion':<59}{rest * 1e6:>13.3f}{rest / step:>8.1%}")
    total = {key: sum(p[key] for p in parts.values()) for key in ("flops", "bytes", "exps", "least")}
    lines.append(row("whole step", total, step, 1, r["least"] / step))
    lines += ["", f"{'share of the time':<20}{'products, alone':>17}{'exp':>10}{'memory':>10}    bound by"]
    for name, p in parts.items():
        bounds = p["bounds"]
        lines.append(
            f"{name:<20}{bounds['products']:>17.1%}{bounds['exp']:>10.1%}{bounds['memory']:>10.1%}    "
            f"{max(bounds, key=bounds.get)}"
        )
    lines.append("")
    lines.append(f"tokens_per_second: {r['tokens_per_second']:.0f}")
    lines.append(f"model_flops_per_token: {r['model_flops']:.0f}")
    lines.append(f"mfu: {r['mfu']:.4f} of {r['peak_flops'] / 1e12:.3f} TFLOP/s")
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, help="windows per pass (default: the preset's)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the processor (default: PyTorch's)")
    parser.add_argument("--compile", action="store_true", help="compile the whole step; the parts stay as they are")
    parser.add_argument(
        "--peak",
        type=float,
        help="FLOP/s that MFU is a share of (default: the data sheet's of "
        "an A100, H100 or H200, else the fastest product here)",
    )
    parser.add_argument("--small", action="store_true", help="tiny ceilings, to try the program out")
    parser.add_argument("--json", help="also write the figures here")
    args, config = configuration.parse_args(parser, argv)
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == "cpu":
        devices.keep_freed_memory()
    dtype, _ = devices.pick_precision(device, args.dtype)
    batch = args.batch or config.train.batch_size
    result = measure(config, batch, dtype, device, args.compile, args.peak, args.small)
    result["settings"] = dataclasses.asdict(config.model)
    print("\n".join(table(result)))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    cli.run(main)
