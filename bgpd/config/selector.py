"""Label selectors as Kubernetes has them (apimachinery LabelSelector): of nodes, of Services. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from bgpd.config.field import one_of
from bgpd.config.section import Section
from bgpd.model.labels import Operator, Requirement


class Expression(Section):
    """One requirement. NotIn also holds for one that lacks the label, as everywhere in Kubernetes."""

    key: str
    operator: Annotated[Operator, one_of(Operator)]
    values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _values_fit_operator(self) -> Expression:
        takes_values = self.operator.takes_values
        if takes_values and not self.values:
            raise ValueError(f"{self.operator.value} needs 'values'; name at least one")
        if not takes_values and self.values:
            raise ValueError(f"{self.operator.value} takes no 'values'; remove them")
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        return Requirement(self.key, self.operator, self.values).holds(labels)


class LabelSelector(Section):
    """All requirements must hold; none at all selects everything."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: tuple[Expression, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        wanted = self.match_labels.items()
        return all(labels.get(key) == value for key, value in wanted) and all(
            expression.matches(labels) for expression in self.match_expressions
        )
