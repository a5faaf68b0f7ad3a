"""The command line: parse, call, print. Slow imports stand inside the commands."""

import os
import signal
import sys
from typing import Any

import click

from alignkit.cli import authoring, checking, housekeeping, looking, reporting, running, using
from alignkit.cli.printing import print_problems
from alignkit.cli.running import ARGUMENTS
from alignkit.errors import INTERRUPTED, AlignkitError
from alignkit.run.stopping import Left, Stop, noting_signals


class Commands(click.Group):
    """The commands; a user's mistakes end in lines on standard error and in their exit status."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Run a command; from the first moment on a signal ends it, or is heeded by what it runs."""
        if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:  # a shell has it ignored by what runs in the background
            signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # bars are redrawn, which a file or a pipe cannot do
        with noting_signals(Stop()) as stop:
            try:
                with stop.at_once():
                    return super().main(*args, obj=stop, **more)
            except Left:
                sys.exit(stop.status)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, and keep them."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. What is no AlignkitError is a bug, and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except AlignkitError as error:
            print_problems(error)
            ctx.exit(error.status)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except Left:
            click.echo("interrupted", err=True)
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            error.add_note("This is a bug in alignkit or in a plugin; add `alignkit doctor --json` to a report of it.")
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alignkit", message="%(package)s %(version)s")
def main() -> None:
    """Align language models from one recipe: CLM, SFT, reward model, PPO, and methods from any package."""


for command in (
    running.recipe,
    looking.plan,
    looking.check,
    looking.data,
    running.compare,
    looking.watch,
    looking.methods,
    authoring.init,
    authoring.schema,
    authoring.new,
    looking.doctor,
    checking.verify,
    reporting.report,
    housekeeping.runs,
    using.chat,
    using.generate,
    using.export,
    checking.reproduce,
):
    main.add_command(command)
