"""Publish a configuration of an agent, to which runs submitted from now on are bound; it never changes again."""

from collections.abc import Mapping
from typing import Any

from mailbox_app.conf import conf
from mailbox_app.errors import AlreadyExists, InvalidInput
from mailbox_app.models import AgentVersion
from mailbox_app.operations import inputs


def version(
    *, agent: str, version: str, configuration: Mapping[str, Any], note: str = "", published_by: Any = None
) -> AgentVersion:
    """Publish a version of an agent's configuration, a JSON object: `ctx.config` of the runs that are bound to it.

    The one published last is the one for submissions that name none. The agent need not be known yet. Publishing the
    same again, also at the same time, is the same answer; the first note and publisher stand. Raises InvalidInput, and
    AlreadyExists for a version with other content; each changes nothing.
    """
    agent, version = inputs.text("agent", agent), inputs.text("version", version, most=100)
    note = inputs.text("note", note, most=500, may_be_blank=True)
    if not isinstance(configuration, Mapping):
        raise InvalidInput(
            "configuration", "not_an_object", f"configuration must be an object, not {type(configuration).__name__}"
        )
    document = inputs.document("configuration", configuration, most_bytes=conf.max_content_bytes)
    known = AgentVersion.objects.filter(agent=agent, version=version)
    published = known.first()
    if published is None:
        # ON CONFLICT DO NOTHING waits for whoever publishes the same; the next statement sees the winner's row.
        made = AgentVersion(agent=agent, version=version, configuration=document, note=note, published_by=published_by)
        AgentVersion.objects.bulk_create([made], ignore_conflicts=True)
        published = known.get()
    if published.configuration != document:
        raise AlreadyExists(
            f"version {version!r} of agent {agent!r} was published with another configuration", field="version"
        )
    return published
