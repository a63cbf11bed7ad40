"""The four tables as PynamoDB models."""

from tdev_models.models.base import BaseModel
from tdev_models.models.execution import AgentExecution
from tdev_models.models.metric import Metric
from tdev_models.models.project import UserProject
from tdev_models.models.session import PipelineSession
from tdev_models.models.worker import WorkerItem

TABLES: tuple[type[BaseModel], ...] = (PipelineSession, AgentExecution, UserProject, Metric)
"""Every model, in the order in which migrations create the tables."""

__all__ = [
    "TABLES",
    "AgentExecution",
    "BaseModel",
    "Metric",
    "PipelineSession",
    "UserProject",
    "WorkerItem",
]
