"""An observer: tells a webhook (Slack, Mattermost, a page of your own) of warnings, and how each stage ends.

The address stands in ALIGNKIT_WEBHOOK, since it is a secret and no result depends on it; without it nothing is sent.
"""

import json
import os
import urllib.request

from alignkit import Event, Result, StageFailed, StageFinished, Warned, hookimpl


@hookimpl
def alignkit_event(event: Event) -> None:
    """Send what a person would want to know of. Called in the process of the run, for every event."""
    address = os.environ.get("ALIGNKIT_WEBHOOK")
    if address and (text := told(event)):
        content = json.dumps({"text": text}).encode()
        request = urllib.request.Request(address, content, {"Content-Type": "application/json"})  # noqa: S310
        urllib.request.urlopen(request, timeout=5).close()  # noqa: S310  # an address of the user's own


def told(event: Event) -> str:
    """Return what is sent of an event; nothing of most."""
    match event:
        case StageFinished(reused=False):
            return "\n".join([f"{event.stage} ({event.method}) is finished", *map(in_words, event.results)])
        case StageFailed():
            return f"{event.stage} failed: {event.problem}; {event.remedy}"
        case Warned(replayed=False):  # a run that goes on tells again what was told before
            return f"{event.stage} warns: {event.problem}; {event.remedy}"
    return ""


def in_words(result: Result) -> str:
    numbers = [f"{number:.3g}" for number in (result.before, result.after) if number is not None]
    return f"{result.name}: {' -> '.join(numbers) or 'not known'}"
