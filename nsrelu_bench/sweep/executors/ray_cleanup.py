"""End what is left of a study's own Ray when the study's process is killed.

Ray's own processes end with the one that started them, but not what they have started themselves.
So a process beside the study waits until that one is gone, then ends their process groups and
removes Ray's folder. It is a program of its own, and imports nothing but Python's own modules.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: What the study's process writes when it has ended Ray itself.
ENDED = b"ended\n"


@contextmanager
def cleanup_process(folder: Path) -> Iterator[int]:
    """Start the process; yields a descriptor to which the groups' ids are written, one per line."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", __file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a signal for the study's group is not for this process
    )
    assert process.stdin is not None  # noqa: S101
    descriptor = process.stdin.fileno()
    try:
        yield descriptor
        with suppress(BrokenPipeError):  # somebody has ended the process
            os.write(descriptor, ENDED)
    finally:
        process.stdin.close()
        process.wait()


def main() -> None:
    """Wait for the end of standard input, and clean up unless the study's process has."""
    lines = sys.stdin.buffer.readlines()
    if ENDED in lines:
        return
    for group in map(int, lines):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
