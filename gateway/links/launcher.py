"""
Becomes a server: own session and process group, no descriptor but 0 to 2, then exec.

Run as a script, `python -I -S launcher.py PARENT LC_CTYPE CWD EXECUTABLE ARGV0 ARG...`:

PARENT: the gateway's process id. If it is not our parent any more, the gateway died before its
    reaper could know of us, and nothing is started.
LC_CTYPE: "keep" or "drop"; Python sets the variable where the C locale is configured (PEP 538),
    and the server must not see what it was not given.
CWD: the directory to run in; "" for the one we are in.

`spawnProcess` offers no process group, and the parent cannot make one after exec. Ends with 126
where the program could not be executed, 127 where it is not there, as a shell would.
"""

from __future__ import annotations

# Not `signal`, whose enums cost 4 ms more; it has no stub.
import _signal  # type: ignore[import-not-found]
import os
import sys

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Become the program. Returns only where that failed: the exit status."""
    parent, ctype, cwd, executable, *argv = arguments
    try:  # noqa: SIM105 - importing contextlib costs more than all that is done here
        os.setsid()
    except PermissionError:
        pass  # already the leader of a group
    # After setsid, so that either the reaper finds the group or we find the gateway gone.
    if os.getppid() != int(parent):
        return 126
    if ctype == "drop":
        os.environ.pop("LC_CTYPE", None)
    # Python ignores these two, and what is ignored stays so across exec.
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
    os.closerange(3, 2**31 - 1)
    try:
        if cwd:
            os.chdir(cwd)
        os.execv(executable, argv)  # noqa: S606 - no shell is wanted
    except FileNotFoundError as error:
        sys.stderr.write(f"cannot be started: {error}\n")
        return 127
    except OSError as error:
        sys.stderr.write(f"cannot be started: {error}\n")
        return 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
