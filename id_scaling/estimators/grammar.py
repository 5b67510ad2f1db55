"""Parse names of estimators, and suggest a name for a misspelled one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

PAGE = "docs/estimators.md"
# Numbers have one spelling: no leading zeros.
NUMBER, WORD = "(?:0|[1-9][0-9]{0,3})", "[A-Za-z0-9_]+"
# A name below this similarity to a form is not near it. The same count of numbers adds SAME_COUNT to the similarity.
NEAR, SAME_COUNT = 0.5, 0.3


@dataclass(frozen=True)
class Rule:
    """A form of names.

    Parameters
    ----------
    pattern : str
        Regular expression whose groups are the method's parameters; NN at a group's end is a number, Name a word.
    module : str
        Module of the method.
    example : str
        A name of this form.
    numbers : dict of str to sequence of int
        Allowed values of each NN in order, by the letter before it.
    note : str
        Remark for messages.
    """

    pattern: str
    module: str
    example: str
    numbers: dict[str, Sequence[int]] = field(default_factory=dict)
    note: str = ""

    @property
    def form(self) -> str:
        """The pattern in readable form, such as `mle_kNN`."""
        return self.filled(["NN"] * len(self.numbers), "Name")

    def filled(self, numbers: Sequence[str], word: str = "") -> str:
        """Return the name with these numbers and this word."""
        remaining = iter(numbers)
        name = re.sub(r"NN\)", lambda _: next(remaining), self.pattern)
        return re.sub(r"\(\?P<\w+>|\)", "", name.replace("Name)", word))

    def parameters(self, name: str) -> dict[str, str] | None:
        """Return the parameters in a name; None if the name is not of this form."""
        match = re.fullmatch(self.pattern.replace("NN)", f"{NUMBER})").replace("Name)", f"{WORD})"), name)
        return match.groupdict() if match and not self.invalid_number(_numbers_in(name)) else None

    def invalid_number(self, numbers: Sequence[str]) -> str:
        """Return a message about the first number that is not allowed; empty if all are allowed."""
        for (letter, allowed), number in zip(self.numbers.items(), numbers, strict=False):
            if len(number) > 4 or int(number) not in allowed:
                return f"found {letter} {number}, expected {_in_words(allowed)}"
        return ""

    def advice(self, numbers: Sequence[str]) -> str:
        """Return a message about a number that is not allowed, or suggest the name with these numbers."""
        if not numbers or len(numbers) != len(self.numbers):
            return f"did you mean {self.example!r}?"
        return self.invalid_number(numbers) or f"did you mean {self.filled(numbers)!r}?"

    def __str__(self) -> str:
        """Return the form and the allowed values of its numbers."""
        ranges = ", ".join(f"{letter} {_in_words(allowed)}" for letter, allowed in self.numbers.items())
        remark = "; ".join(filter(None, (ranges, self.note)))
        return f"{self.form} ({remark})" if remark else self.form


def hint(name: str, rules: Sequence[Rule], other_names: Mapping[str, str]) -> str:
    """Return a suggestion for an unknown name, with the forms of its method, or with all forms if none is near.

    Parameters
    ----------
    name : str
    rules : sequence of Rule
    other_names : dict of str to str
        Other common names, in lowercase, and the names that they stand for.
    """
    suggestion = other_names.get(re.sub("[^a-z0-9]", "", name.lower()))
    rule_meant = next(
        (rule for rule in rules if suggestion and rule.parameters(suggestion) is not None),
        _most_similar_rule(name, rules),
    )
    forms = "; ".join(str(rule) for rule in rules if rule_meant is None or rule.module == rule_meant.module)
    if rule_meant is None:
        return f"the names are {forms} ({PAGE} says what each is)"
    advice = f"did you mean {suggestion!r}?" if suggestion else rule_meant.advice(_numbers_in(name))
    return f"{advice} (names of this method: {forms}; all names: {PAGE})"


def _most_similar_rule(name: str, rules: Sequence[Rule]) -> Rule | None:
    """Return the rule whose form is most similar to a name; None if no form is near."""
    n_numbers = len(_numbers_in(name))
    similarities = [_similarity(name, rule) for rule in rules]
    scores = [
        similarity + SAME_COUNT * (len(rule.numbers) == n_numbers > 0) if similarity >= NEAR else 0
        for similarity, rule in zip(similarities, rules, strict=True)
    ]
    return rules[scores.index(max(scores))] if max(scores) else None


def _similarity(name: str, rule: Rule) -> float:
    """Return the similarity of a name and the form of a rule, ignoring case and numbers."""
    form = rule.filled([""] * len(rule.numbers))
    return SequenceMatcher(None, re.sub("[0-9]+", "", name).lower(), form.lower()).ratio()


def _numbers_in(name: str) -> list[str]:
    """Return the numbers in a name, without leading zeros."""
    return [number.lstrip("0") or "0" for number in re.findall("[0-9]+", name)]


def _in_words(allowed: Sequence[int]) -> str:
    """Return increasing numbers in words: up to three as a list; more as a range, with the missing ones."""
    if len(allowed) <= 3:
        return " or ".join(", ".join(map(str, allowed)).rsplit(", ", 1))
    missing = sorted(set(range(allowed[0], allowed[-1])).difference(allowed))
    return f"{allowed[0]} to {allowed[-1]}" + "".join(f" but {number}" for number in missing)
