"""Read the chat template that a policy's source gives, and refuse one that cannot be one."""

from pathlib import Path

from alignkit.errors import DataError
from alignkit.sources.entry import Entry

KEY = "chat_template"


def read_chat_template(entry: Entry, file: Path, shown: str) -> str:
    """Read a template's file. Raises DataError where there is none, or where it is no template."""
    try:
        text: str = file.read_text("utf-8")
    except FileNotFoundError as error:
        raise _refusal(entry, f"there is no file {shown!r}", f"it was looked for as {file}") from error
    except OSError as error:
        raise _refusal(entry, f"{shown!r} cannot be read ({error.strerror})", "give a file with a template") from error
    except UnicodeDecodeError as error:
        raise _refusal(entry, f"{shown!r} is no text in UTF-8", "give a file with a template") from error
    if "messages" not in text:
        raise _refusal(entry, f"{shown!r} is no chat template: it never mentions messages", "give a Jinja template")
    _check_syntax(entry, text, shown)
    return text


def _check_syntax(entry: Entry, text: str, shown: str) -> None:
    """Read a template as transformers will, the marks of what is generated among its tags."""
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}`, which changes nothing in what is rendered."""

        tags = {"generation"}  # as Jinja has it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    try:
        environment.from_string(text)
    except TemplateSyntaxError as error:
        problem = f"{shown}:{error.lineno}: the chat template cannot be read: {str(error.message).rstrip('.')}"
        raise _refusal(entry, problem, "correct it there") from error


def _refusal(entry: Entry, problem: str, remedy: str) -> DataError:
    return DataError(f"{entry.named}: {problem}", entry.where(KEY), remedy)
