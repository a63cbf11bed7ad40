"""The table of user projects."""

from __future__ import annotations

from pynamodb.attributes import ListAttribute, UnicodeAttribute
from pynamodb.indexes import GlobalSecondaryIndex, IncludeProjection

from tdev_models.models.attributes import InstantAttribute, JSONTextAttribute, NumberAttribute
from tdev_models.models.base import BaseModel, TableMeta


class RecentIndex(GlobalSecondaryIndex["UserProject"]):
    """Projects of one user by `last_accessed`."""

    class Meta:
        """How the index is stored."""

        index_name = "recent-index"
        projection = IncludeProjection(
            [
                "project_name",
                "description",
                "tech_stack",
                "download_count",
                "file_path",
                "size_mb",
                "created_at",
            ]
        )

    user_id = UnicodeAttribute(hash_key=True)
    last_accessed = InstantAttribute(range_key=True)


class UserProject(BaseModel):
    """One generated project of one user."""

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "user-projects"

    user_id = UnicodeAttribute(hash_key=True)
    project_id = UnicodeAttribute(range_key=True)
    project_name = UnicodeAttribute(null=True)
    description = UnicodeAttribute(null=True)
    tech_stack = JSONTextAttribute(null=True)
    download_count = NumberAttribute(null=True)
    last_accessed = InstantAttribute(null=True)
    file_path = UnicodeAttribute(null=True)
    size_mb = NumberAttribute(null=True)

    created_at = InstantAttribute(null=True)
    download_ids: ListAttribute[str] = ListAttribute(null=True)

    recent_index = RecentIndex()
