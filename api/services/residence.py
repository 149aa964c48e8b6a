"""Which models the scorers have in memory, and asking them to load one or to give it up."""

from collections.abc import Sequence
from dataclasses import dataclass

from api.services.models import ListedModel, ModelResolver
from jobs.ports import Scorer
from jobs.residents import ModelState, Resident, Residents


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model, and what each scorer that answers says of it."""

    model: ListedModel
    states: tuple[ModelState, ...]
    found: Resident | None  # with its numbers, from a scorer that has it
    error: str | None

    @property
    def scorers(self) -> int:
        """How many answer."""
        return len(self.states)

    @property
    def loaded_on(self) -> int:
        """How many have it."""
        return self.states.count("loaded")

    @property
    def state(self) -> ModelState | None:
        """What is still to come or went wrong anywhere; else whether a score can have it without a wait."""
        order: tuple[ModelState, ...] = ("loading", "failed", "loaded", "unloaded")
        return next((state for state in order if state in self.states), None)


class Residence:
    """The models by name, and their places."""

    def __init__(self, models: ModelResolver, scorer: Scorer) -> None:
        self._models, self._scorer = models, scorer

    def listed(self) -> list[Placed]:
        """The registered models by name."""
        answers = self._scorer.residents()
        return [_placed(model, answers) for model in self._models.listed()]

    def get(self, name: str, owner: str) -> Placed:
        """A registered model, or a checkpoint of the owner's. Raises ModelNotFound, as all below."""
        return _placed(self._models.named(name, owner), self._scorer.residents())

    def load(self, name: str, owner: str) -> Placed:
        """Asked of every scorer. Raises ScorerUnavailable, ScoringRefused."""
        self._scorer.load(self._models.named(name, owner).source)
        return self.get(name, owner)

    def unload(self, name: str, owner: str) -> Placed:
        """Asked of every scorer. Raises as `load`."""
        self._scorer.unload(self._models.named(name, owner).source)
        return self.get(name, owner)


def _placed(model: ListedModel, answers: Sequence[Residents]) -> Placed:
    said = [next((one for one in answer.models if one.source == model.source), None) for answer in answers]
    found = next((one for one in said if one is not None and one.state == "loaded"), None)
    return Placed(
        model=model,
        states=tuple("unloaded" if one is None else one.state for one in said),
        found=found,
        error=next((one.error for one in said if one is not None and one.error), None),
    )
