"""What an id of a job looks like."""

import re

from jobs.errors import JobNotFound

JOB_ID = re.compile(r"job_[0-9a-f]{32}")


def known_shape(job_id: str) -> str:
    """The id, if it could be one: nothing else reaches the database. Raises JobNotFound."""
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id)
    return job_id
