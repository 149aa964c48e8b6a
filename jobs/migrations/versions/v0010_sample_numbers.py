"""What samples are sorted by stands in columns: PostgreSQL cannot read a number of JSON that holds a NUL."""

import math
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

AT_ONCE = 500
NUMBERS = ("kl", "reward")


def upgrade() -> None:
    """Those of old rows are read from them, once."""
    for name in NUMBERS:
        op.add_column("job_samples", sa.Column(name, sa.Double()))
    samples = sa.table(
        "job_samples",
        *(sa.column(name) for name in ("job_id", "step", "kind", "index", *NUMBERS)),
        sa.column("data", sa.JSON()),
    )
    place = [samples.c[name] for name in ("job_id", "step", "kind", "index")]
    query = sa.select(*place, samples.c.data).order_by(*place).limit(AT_ONCE)
    connection, last = op.get_bind(), None
    while True:
        later = query if last is None else query.where(sa.tuple_(*place) > sa.tuple_(*map(sa.literal, last)))
        rows = connection.execute(later).all()
        if not rows:
            return
        for row in rows:
            this = [column == value for column, value in zip(place, row[:4], strict=True)]
            values = {name: _number(row.data.get(name)) for name in NUMBERS}
            connection.execute(sa.update(samples).where(*this).values(**values))
        last = rows[-1][:4]


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None
