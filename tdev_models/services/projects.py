"""What a user has generated: projects and their downloads."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pynamodb.expressions.condition import size

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import decrypted_result, encrypt_fields, listed_result
from tdev_models.dynamodb.expressions import (
    is_as_read,
    replace_fields,
    set_if_absent,
    set_to,
)
from tdev_models.dynamodb.saves import save_once
from tdev_models.errors import ConditionFailed, Conflict, InvalidRequest, NotFound, shown
from tdev_models.metrics.automatic import project_downloaded, project_saved
from tdev_models.models import UserProject
from tdev_models.results import Page, Project
from tdev_models.retry import CONTENDED_TRIES, Turns

RULES = UserProject.rules()
_DOWNLOAD_ID = validation.key(128)

# The last 100 ids at least: at 150 they are cut to the last 100, so one call in 50 pays for it.
_IDS_KEPT, _IDS_MOST = 100, 150


async def save_user_project(
    client: Client, data: Mapping[str, Any] | None = None, /, **more: Any
) -> Project:
    """Create a project or change the given fields of one, and return it as it is now.

    One UpdateItem; only the given fields change, `created_at` is set once, `last_accessed` always.
    Safe to call again with the same fields.

    Args:
        data: the fields, by name; `help(UserProject)` lists them with their limits. user_id and
            project_id are required. None means not given.
        more: the same as keywords.

    Raises:
        InvalidRequest: a field is unknown or has a wrong value; nothing was sent.
        Conflict, Throttled, Unavailable: after all retries; safe to call again.
    """
    kept = UserProject.get_attributes()
    values = validation.checked(data, more, RULES, "user_id", "project_id", kept=kept)
    key = values.pop("user_id"), values.pop("project_id")
    fields = await encrypt_fields(client, UserProject, key, values)
    now = client.now()
    project = await save_once(
        client,
        client.projects,
        *key,
        actions=[
            *replace_fields(UserProject, fields),
            set_to(UserProject.last_accessed, now),
            set_if_absent(UserProject.created_at, now),
            set_if_absent(UserProject.download_count, 0),
        ],
    )
    project_saved(client, project)
    return await decrypted_result(client, Project, project)


async def get_user_project(client: Client, user_id: str, project_id: str) -> Project:
    """Return one project, read consistently. Does not count as an access.

    Raises:
        NotFound: there is none.
        InvalidRequest: an id cannot be a key.
        PayloadDamaged: it cannot be read.
    """
    project = await client.projects.get(*_key(user_id, project_id))
    if project is None:
        raise _missing(user_id, project_id)
    return await decrypted_result(client, Project, project)


async def list_user_projects(
    client: Client,
    user_id: str,
    order: str = "recent",
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Project]:
    """Return a page of one user's projects. One that cannot be read is logged and left out.

    Args:
        user_id: whose.
        order: "recent", last accessed first (one Query on recent-index, eventually consistent), or
            "project_id", ascending (one Query on the table, consistent).
        limit: 1..1000 projects.
        cursor: of the page before.

    Raises:
        InvalidRequest: a wrong value, or a cursor of another query.
    """
    RULES["user_id"]("user_id", user_id)
    if not isinstance(order, str) or order not in ("recent", "project_id"):
        raise InvalidRequest("order", f"{shown(order)} is not one of recent, project_id")
    validation.LIMIT("limit", limit)
    query = ("list_user_projects", client.projects.name, user_id, order)
    recent = order == "recent"
    index = UserProject.recent_index if recent else None
    start = cursors.decode(query, cursor, client.projects.is_start(user_id, index))
    projects, last = await client.projects.page(
        user_id,
        index=index,
        newest_first=recent,
        limit=limit,
        start=start,
        unreadable=[],
    )
    return Page(
        (listed_result(Project, project) for project in projects),
        cursors.encode(query, last) if last else None,
    )


async def record_download(
    client: Client, user_id: str, project_id: str, download_id: str | None = None
) -> Project:
    """Count one download of a project, and return the project.

    One conditional UpdateItem. At least the last 100 download ids are remembered: one of them again
    counts nothing, so a call with an id is safe to send again. Without one, only the package's own
    retries are.

    Args:
        user_id: whose project.
        project_id: which.
        download_id: names this download, at most 128 bytes; chosen when not given.

    Raises:
        NotFound: there is no such project.
        InvalidRequest: an id cannot be stored.
        Conflict, Throttled, Unavailable: after all retries; safe to call again with the same
            download_id.
    """
    key = _key(user_id, project_id)
    chosen = _DOWNLOAD_ID("download_id", uuid.uuid4().hex if download_id is None else download_id)
    new = UserProject.download_ids.does_not_exist() | ~UserProject.download_ids.contains(chosen)
    seen: UserProject | None = None
    tried: set[float] = set()
    turns = Turns(client.sleep)
    while await turns.next():
        now = client.now()
        tried.add(now)
        actions = [
            UserProject.download_count.set((UserProject.download_count | 0) + 1),
            set_to(UserProject.last_accessed, now),
        ]
        condition = UserProject.user_id.exists() & new
        ids: Any
        if seen is None:
            ids = (UserProject.download_ids | []).append([chosen])
            condition &= UserProject.download_ids.does_not_exist() | (
                size(UserProject.download_ids) < _IDS_MOST
            )
        else:
            ids = [*seen.download_ids[-_IDS_KEPT + 1 :], chosen]
            condition &= is_as_read(UserProject.download_count, seen.download_count)
        actions.append(UserProject.download_ids.set(ids))
        try:
            project = await client.projects.update(*key, actions=actions, condition=condition)
        except ConditionFailed as refused:
            seen = client.projects.load(refused.item)
            if seen is None:
                raise _missing(user_id, project_id) from None
            if chosen in (seen.download_ids or ()):
                if download_id is None or seen.last_accessed in tried:
                    project_downloaded(client)  # this call's own, whose reply was lost
                return await decrypted_result(client, Project, seen)
            if len(seen.download_ids or ()) < _IDS_MOST:
                seen = None
        else:
            project_downloaded(client)
            return await decrypted_result(client, Project, project)
    raise Conflict(f"project {project_id}: others wrote it {CONTENDED_TRIES} times in between")


def _key(user_id: str, project_id: str) -> tuple[str, str]:
    return RULES["user_id"]("user_id", user_id), RULES["project_id"]("project_id", project_id)


def _missing(user_id: str, project_id: str) -> NotFound:
    return NotFound(f"user {user_id} has no project {project_id}")
