"""How every command begins and ends: UTF-8, one `error:` line for a mistake, 130 for Ctrl-C, 141 for a closed pipe.

Importing anything from lab/ runs this module, and every command does so before it imports PyTorch. So what is set here
holds during the long imports already: Ctrl-C gives no traceback, a missing package is one line, and threads do not
spin while they wait.
"""

import os
import shlex
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGES = """torch numpy yaml tqdm sentencepiece pooch matplotlib jinja2 safetensors tokenizers
huggingface_hub""".split()


def on_interrupt(handler):
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # under nohup it stays ignored
        signal.signal(signal.SIGINT, handler)


def end_at_once(*_):
    os.write(2, b"interrupted\n")
    os._exit(130)


def end_in_order(*_):
    """The first Ctrl-C lets the command clean up; another one does not wait for that."""
    on_interrupt(end_at_once)
    raise KeyboardInterrupt


def explain_missing(kind, error, trace):
    """Instead of a traceback, one line for a missing package, with both ways out."""
    if kind is not ModuleNotFoundError or error.name not in PACKAGES:
        sys.__excepthook__(kind, error, trace)
        return
    package = "PyYAML" if error.name == "yaml" else error.name
    print(
        f"error: the package {package} is not installed here. After `make`, use its environment: "
        f"source .venv/bin/activate. In one of your own: python -m pip install -e {shlex.quote(ROOT + '[hub]')}",
        file=sys.stderr,
    )
    sys.stderr.flush()
    os._exit(2)


# Threads that wait for each other spin, which takes the core from other programs, as on a laptop in use: let them give
# up soon (bench/speed/threads.py compares values). PyTorch's threads read this when they are loaded.
SPINNING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}  # for GNU's and LLVM's threads
if not {"OMP_WAIT_POLICY", *SPINNING} & os.environ.keys():
    os.environ.update(SPINNING)

program = getattr(sys.modules["__main__"], "__file__", None)
if program and os.path.dirname(os.path.abspath(program)) == ROOT:  # one of our commands, not a test or a notebook
    on_interrupt(end_at_once)
sys.excepthook = explain_missing


def run(main):
    """Runs a command to its exit: a UserError is one `error:` line and status 2, Ctrl-C is 130, a closed pipe 141."""
    from lab.files import UserError  # not above: it takes longer than this module

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream and "PYTHONIOENCODING" not in os.environ:  # whatever the locale or Windows says
            stream.reconfigure(encoding="utf-8")
    sys.argv[1:] = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in sys.argv[1:]]
    if sys.stdout:
        sys.stdout.reconfigure(line_buffering=True, errors="replace")  # a log file shows each line at once
    on_interrupt(end_in_order)
    try:
        status = main()
        sys.stdout.flush()
    except SystemExit as e:  # argparse has said why
        status = e.code
    except KeyboardInterrupt:
        status = 130
        print("interrupted", file=sys.stderr)
    except UserError as e:
        status = 2
        print(f"error: {e}", file=sys.stderr)
    except OSError as e:  # a closed pipe, or a full disk below the output
        status = 141 if isinstance(e, BrokenPipeError) else 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes nowhere: it would fail again
        if status == 2:
            print(f"error: {e}", file=sys.stderr)
    on_interrupt(signal.SIG_IGN)  # the interpreter takes a moment to exit
    sys.exit(status)
