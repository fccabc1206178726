"""Where the command starts and ends: signals, errors as messages, exit codes."""

import signal
import sys
import traceback
import warnings

from typer.main import get_command

from finetune.cli.application import app
from finetune.cli.unknown_options import advice_on_options
from finetune.errors import FinetuneError, printable, printable_lines, reason
from finetune.interruption import stoppable, stopped
from finetune.machine_failures import failure_text
from finetune.results.lenient_output import lenient, open_closed_streams

USAGE_ERROR = 2  # Click's exit code for a command line that it cannot read, which is that for bad input, too


def main() -> None:
    """Runs the command line; exits as `_EXIT_CODES` says."""
    open_closed_streams()
    sys.stdout, sys.stderr = lenient(sys.stdout), lenient(sys.stderr)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable_lines(str(message))}\n"
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    code: int | str | None = 0
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        print(printable(f"error: A recipe is no command. Run it: `finetune run {arguments[0]}`."), file=sys.stderr)
        sys.exit(2)
    with stoppable():
        try:
            app(arguments, prog_name="finetune")  # always raises: click ends with `SystemExit`
        except BaseException as error:
            code = _reported(error, debug=len(arguments) < len(sys.argv) - 1)
            if isinstance(error, SystemExit) and code == USAGE_ERROR and (advice := _advice(arguments)):
                print(advice, file=sys.stderr)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a signal while Python shuts down prints no traceback
    sys.exit(code)


def _advice(arguments: list[str]) -> str:
    command = getattr(get_command(app), "commands", {}).get(arguments[0] if arguments else "")
    options = [name for option in getattr(command, "params", ()) for name in (*option.opts, *option.secondary_opts)]
    return advice_on_options(arguments, options)


def _reported(error: BaseException, *, debug: bool) -> int | str | None:
    """Prints an error, and returns the exit code of the process."""
    stop = stopped()
    if isinstance(error, SystemExit) and not (stop and error.code):
        sys.stdout.flush()
        if not error.code and (failure := getattr(sys.stdout, "failure", None)):
            print(f"error: Part of the output could not be written: {failure.strerror}.", file=sys.stderr)
            return 1
        return error.code
    if debug:
        print(printable_lines("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    if isinstance(error, FinetuneError) and not debug:
        print(f"error: {error}", file=sys.stderr)
    elif not stop and not debug and (text := failure_text(error)):
        print(f"error: {printable_lines(text)}", file=sys.stderr)
    elif not stop and not debug:
        # A fault of finetune itself: a line that says how to see more, instead of a traceback.
        text = printable_lines(f"finetune failed with {type(error).__name__}: {reason(error)}")
        print(f"error: {text}. `--debug` shows where; please report it.", file=sys.stderr)
    if stop:  # whatever else it is: typer turns the exception into an exit, and TensorFlow into an error of its own
        print(printable_lines(str(stop)), file=sys.stderr)
        return stop.exit_code
    return error.exit_code if isinstance(error, FinetuneError) else 1
