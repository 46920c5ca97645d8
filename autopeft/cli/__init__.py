"""The command line: parse, call one function, render. Heavy packages are imported inside the commands."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from autopeft.errors import AutopeftError

__all__ = ["main"]


def main() -> None:
    """Entry point of the `autopeft` command; ends the process with the documented exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # PEFT imports it where it is installed, and it warns of a kernel that it lacks, whatever the model.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors for the user go to stderr in one line, without a traceback."""
    from autopeft.cli.app import app
    from autopeft.cli.options import debug_asked

    try:
        result: Any = app(arguments, standalone_mode=False)
    except AutopeftError as error:
        if debug_asked(arguments):
            raise
        _tell(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _tell("stopped by Ctrl-C")
        return 130
    except BrokenPipeError:
        # The reader is gone (`| head`): nothing more to say, and Python must not complain when it flushes at exit.
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
        return 0
    except Exception as error:
        return _usage_error(error, debug_asked(arguments))
    return result if isinstance(result, int) else 0


def _usage_error(error: Exception, debug: bool) -> int:
    """Exit code of an exception that is none of ours: a usage error of the parser, or a defect."""
    show = getattr(error, "show", None)
    if show is not None and hasattr(error, "exit_code"):
        show(file=sys.stderr)
        return int(error.exit_code)
    if type(error).__name__ in {"Exit", "Abort"}:
        return int(getattr(error, "exit_code", 1))
    if debug:
        raise error
    _tell(f"internal error: {type(error).__name__}: {error}. Run it again with --debug and report what it prints")
    return 1


def _tell(message: str) -> None:
    print(f"autopeft: {message}", file=sys.stderr)  # noqa: T201
