"""Which nodes a peer is for: a label selector as Kubernetes has it (apimachinery LabelSelector). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from bgpd.config.field import one_of
from bgpd.config.section import Section


class Operator(StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Expression(Section):
    """One requirement. NotIn also holds for a node that lacks the label, as everywhere in Kubernetes."""

    key: str
    operator: Annotated[Operator, one_of(Operator)]
    values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _values_fit_operator(self) -> Expression:
        takes_values = self.operator in (Operator.IN, Operator.NOT_IN)
        if takes_values and not self.values:
            raise ValueError(f"{self.operator.value} needs 'values'; name at least one")
        if not takes_values and self.values:
            raise ValueError(f"{self.operator.value} takes no 'values'; remove them")
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.DOES_NOT_EXIST:
                return self.key not in labels


class NodeSelector(Section):
    """All requirements must hold; none at all selects every node."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: tuple[Expression, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        wanted = self.match_labels.items()
        return all(labels.get(key) == value for key, value in wanted) and all(
            expression.matches(labels) for expression in self.match_expressions
        )
