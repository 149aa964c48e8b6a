"""The JSON documents of what a training run's metrics say: findings, and the frontier."""

from typing import Literal, Self

from pydantic import Field

from api.schemas import Document, Number
from api.services.analysis import Curve, Frontier
from rlhf_core.diagnosis import Finding
from rlhf_core.frontier import Fit


class Evidence(Document):
    """The steps that a rule looked at, and the numbers it made of them."""

    first_step: int
    last_step: int
    numbers: dict[str, Number]


class FindingDocument(Document):
    """A rule that fired: `value` is past `threshold`. `rule` is the contract; the texts are for people."""

    rule: str
    message: str
    value: float
    threshold: float
    evidence: Evidence
    advice: str

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """The document of a finding."""
        values = vars(finding).copy()
        evidence = Evidence(**{name: values.pop(name) for name in Evidence.model_fields})
        return cls(**values, evidence=evidence)


class PointDocument(Document):
    """One step: mean reward, exact KL in nats per sequence, and d = √KL."""

    step: int
    kl: float
    d: float
    reward: float


class PeakDocument(Document):
    """The highest point of the law, with a 95 % interval of its d."""

    d: Number
    low: Number
    high: Number
    kl: Number
    reward: Number


class FitDocument(Document):
    """R(d) = r0 + d(a − b ln d) by least squares, with standard errors."""

    r0: Number
    a: Number
    b: Number
    a_se: Number
    b_se: Number
    noise: Number = Field(description="Standard deviation of a point around the law.")
    peak: PeakDocument | None = Field(description="null unless b is positive with 95 % confidence.")

    @classmethod
    def of(cls, fit: Fit) -> Self:
        """The document of a fit."""
        peak = fit.peak and PeakDocument(**fit.peak._asdict(), kl=fit.peak.d**2)
        return cls(**(fit._asdict() | {"peak": peak}))


class CurveDocument(Document):
    """One reward against d; of a long run, not every step."""

    points: list[PointDocument]
    fit: FitDocument | None = Field(description="null for fewer than 8 points, or one reward at all of them.")

    @classmethod
    def of(cls, curve: Curve) -> Self:
        """The document of a curve."""
        points = [PointDocument(**point._asdict(), d=point.d) for point in curve.points]
        return cls(points=points, fit=curve.fit and FitDocument.of(curve.fit))


class BestOfNDocument(Document):
    """The best of n completions of the reference by the reward: a mean over the held-out prompts."""

    n: int
    kl_bound: float = Field(description="ln n − (n−1)/n; the KL is less where rewards are equal.")
    d: float = Field(description="√kl_bound.")
    reward: float
    reward_se: float | None = Field(description="Clustered by prompt; null for a single one.")
    gold: float | None = Field(description="Of the completion that the reward takes for the best.")
    gold_se: float | None


class FrontierDocument(Document):
    """What drift has bought: the training reward (`proxy`), the gold reward, and both on held-out prompts."""

    object: Literal["frontier"] = "frontier"
    job_id: str
    last_step: int
    proxy: CurveDocument
    gold: CurveDocument
    held_out: CurveDocument
    held_out_gold: CurveDocument
    best_of_n: list[BestOfNDocument] = Field(
        description="With `evaluation.best_of_n`. A run whose held-out reward is below this at the same KL has "
        "wasted its drift: choosing among completions of the reference buys more."
    )

    @classmethod
    def of(cls, job_id: str, frontier: Frontier) -> Self:
        """The document of a frontier."""
        curves = {name: CurveDocument.of(curve) for name, curve in frontier.curves.items()}
        best = [BestOfNDocument(**point, d=point["kl_bound"] ** 0.5) for point in frontier.best_of_n]
        return cls(job_id=job_id, last_step=frontier.last_step, **curves, best_of_n=best)
