"""A bare Celery task: how fast the machine and the broker are without a queue of ours."""

from celery import shared_task


@shared_task(name="workload.nothing", ignore_result=True)
def nothing() -> None:
    """Do nothing."""
