"""What can be wrong with what a user gives. The message is one line that names the file or folder and says
what to do. Everything else is a fault of ours: the command line keeps its traceback in a file.
"""

from __future__ import annotations

import _thread
import dis
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

LONGEST = 600  # characters of a message


class ScanError(ValueError):
    """A scan, or a folder of scans or slices, cannot be used."""


class RunError(ValueError):
    """A training run's folder cannot be used."""


class WeightsError(ValueError):
    """A model's folder cannot be used."""


class Refused(ValueError):
    """The arguments of a command make no sense together."""


class UnsafeFile(ValueError):
    """A pickled file that names something which nobody needs in order to hold weights."""


def foreseen(error: Exception) -> bool:
    """Is its message meant for the user: one of the above, what the system says of a file, or what a line of
    this package refuses by a `raise` (and not what a function that it calls makes of a mistake of ours).
    """
    if isinstance(error, (ScanError, RunError, WeightsError, Refused, UnsafeFile, OSError)):
        return True
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    frame = last.tb_frame
    raised = dis.opname[frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    ours = frame.f_globals.get("__name__", "").startswith("madad_lite.")
    return isinstance(error, (ValueError, ImportError)) and ours and raised


def one_line(error: BaseException) -> str:
    """An error's message, of the system's errors without their number; of a very long one its beginning and end."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 + 5 :]}"


def write_log(error: BaseException) -> str:
    """Adds the traceback to madad-error.log in the current folder, or else to a new temporary file; returns
    the file's path.
    """
    text = f"{datetime.now():%Y-%m-%d %H:%M:%S} {sys.argv[1:]}\n"
    text += "".join(traceback.format_exception(type(error), error, error.__traceback__)) + "\n"
    form = {"encoding": "utf-8", "errors": "backslashreplace"}
    try:
        with open("madad-error.log", "a", **form) as f:
            f.write(text)
    except OSError:
        with tempfile.NamedTemporaryFile("w", prefix="madad-error-", delete=False, **form) as f:
            f.write(text)
    return os.path.abspath(f.name)


@contextmanager
def insisting(seconds: float) -> Iterator[None]:
    """What Ctrl-C raises can be swallowed where Python cannot pass it on (in a destructor or a callback), or by
    a library. So it is raised again every few seconds until it has left this block, also in place of another error
    that a library made of it.
    """
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):  # not ours to handle
        yield
        return
    again: list[threading.Timer] = []

    def repeat() -> None:
        if hasattr(signal, "pthread_kill"):  # wakes a thread that waits; not there on Windows
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        else:
            _thread.interrupt_main()

    def interrupt(number, frame):
        again.append(threading.Timer(seconds, repeat))
        again[-1].daemon = True
        again[-1].start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if again:  # what a library made of it, such as torch.save in the midst of a file
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for timer in again:
            timer.cancel()
