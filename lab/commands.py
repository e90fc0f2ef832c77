"""How every command ends: one `error:` line for a mistake, 130 for Ctrl-C, 141 for a closed pipe."""
import os
import signal
import sys

from lab.files import UserError


def run(main):
    """Runs a command: a UserError becomes one `error:` line and exit status 2, Ctrl-C ends with 130, a closed pipe with 141."""
    if sys.stdout:                                                      # a log file shows each line at once; a terminal that lacks a character, a ?
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)                    # ending takes a moment, and a second one would end it in a traceback
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except OSError as e:                                                # of a disk, a device, a terminal: the standard output too may be a full disk
        print(f"error: {e}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(2)
