"""The table of user projects."""

from __future__ import annotations

from tdev_models.models.attributes import (
    BytesAttribute,
    InstantAttribute,
    JSONTextAttribute,
    NumberAttribute,
    TextAttribute,
    TextListAttribute,
)
from tdev_models.models.base import BaseModel, TableMeta
from tdev_models.models.indexes import ListIndex
from tdev_models.validation import SORT_KEY_BYTES, json_text, key, number, text


class RecentIndex(ListIndex["UserProject"], name="recent-index"):
    """Projects of one user by `last_accessed`."""

    user_id = TextAttribute(hash_key=True)
    last_accessed = InstantAttribute(range_key=True)


class UserProject(BaseModel):
    """One generated project of one user.

    What callers give:
        user_id: at most 2,048 bytes.
        project_id: at most 1,024 bytes.
        project_name: at most 1,024 bytes.
        description: at most 8 KB.
        tech_stack: JSON, at most 8 KB; usually a list of names.
        file_path: at most 2,048 bytes.
        size_mb: a number.
    """

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "user-projects"

    user_id = TextAttribute(key(), hash_key=True)
    project_id = TextAttribute(key(SORT_KEY_BYTES), range_key=True)
    project_name = TextAttribute(text(1024), listed=True)
    description = TextAttribute(text(8 * 1024), listed=True)
    description_encrypted = BytesAttribute(returned=False)  # instead, where it is encrypted
    tech_stack = JSONTextAttribute(json_text(8 * 1024, "name technologies only"), listed=True)
    download_count = NumberAttribute(listed=True)
    last_accessed = InstantAttribute(listed=True)
    file_path = TextAttribute(text(2048), listed=True)
    size_mb = NumberAttribute(number, listed=True)

    created_at = InstantAttribute(listed=True)
    download_ids = TextListAttribute(returned=False)
    # As in PipelineSession: what makes a save count once.
    write_token = TextAttribute(returned=False, lease=True)
    former_token = TextAttribute(returned=False, lease=True)
    saved_at = InstantAttribute(returned=False, lease=True)

    recent_index = RecentIndex()
