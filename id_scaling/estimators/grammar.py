"""Names of estimators: how one is read, and what a misspelt one is answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

PAGE = "docs/estimators.md"
# Numbers have one spelling: no leading zeros.
NUMBER, WORD = "(?:0|[1-9][0-9]{0,3})", "[A-Za-z0-9_]+"
# A name that shares less with a form is not near it; having as many numbers counts for as much as this share.
NEAR, SAME_COUNT = 0.5, 0.3


@dataclass(frozen=True)
class Rule:
    """One form of names.

    Parameters
    ----------
    pattern : str
        Regular expression whose groups are the method's parameters; NN at a group's end is a number, Name a word.
    module : str
        What holds the method.
    example : str
        A name of this form.
    numbers : dict of str to sequence of int
        What each NN may be, in their order, by the letter before it.
    note : str
        What else is to say of them.
    """

    pattern: str
    module: str
    example: str
    numbers: dict[str, Sequence[int]] = field(default_factory=dict)
    note: str = ""

    @property
    def form(self) -> str:
        """The pattern as people read it, such as `mle_kNN`."""
        return self.filled(["NN"] * len(self.numbers), "Name")

    def filled(self, numbers: Sequence[str], word: str = "") -> str:
        """Return the name with these numbers and this word."""
        left = iter(numbers)
        text = re.sub(r"NN\)", lambda _: next(left), self.pattern)
        return re.sub(r"\(\?P<\w+>|\)", "", text.replace("Name)", word))

    def parameters(self, name: str) -> dict[str, str] | None:
        """Return the parameters that a name gives, None for a name that is not of this form."""
        match = re.fullmatch(self.pattern.replace("NN)", f"{NUMBER})").replace("Name)", f"{WORD})"), name)
        return match.groupdict() if match and not self.outside(_numbers_in(name)) else None

    def outside(self, numbers: Sequence[str]) -> str:
        """Return the first number that may not be, and what may; nothing where all may."""
        for (letter, allowed), number in zip(self.numbers.items(), numbers, strict=False):
            if len(number) > 4 or int(number) not in allowed:
                return f"found {letter} {number}, expected {_in_words(allowed)}"
        return ""

    def advice(self, numbers: Sequence[str]) -> str:
        """Return which of these numbers may not be, or else the name that they give."""
        if not numbers or len(numbers) != len(self.numbers):
            return f"did you mean {self.example!r}?"
        return self.outside(numbers) or f"did you mean {self.filled(numbers)!r}?"

    def __str__(self) -> str:
        """Return the form and what its numbers may be."""
        ranges = ", ".join(f"{letter} {_in_words(allowed)}" for letter, allowed in self.numbers.items())
        remark = "; ".join(filter(None, (ranges, self.note)))
        return f"{self.form} ({remark})" if remark else self.form


def hint(name: str, rules: Sequence[Rule], others: Mapping[str, str]) -> str:
    """Return what was meant by a name of no rule, with the forms of that method; with all forms if none is near.

    Parameters
    ----------
    name : str
    rules : sequence of Rule
    others : dict of str to str
        Names from elsewhere, in small letters, and the names of rules that they stand for.
    """
    meant = others.get(re.sub("[^a-z0-9]", "", name.lower()))
    nearest = next((rule for rule in rules if meant and rule.parameters(meant) is not None), _nearest(name, rules))
    listed = "; ".join(str(rule) for rule in rules if nearest is None or rule.module == nearest.module)
    if nearest is None:
        return f"the names are {listed} ({PAGE} says what each is)"
    advice = f"did you mean {meant!r}?" if meant else nearest.advice(_numbers_in(name))
    return f"{advice} (names of this method: {listed}; all names: {PAGE})"


def _nearest(name: str, rules: Sequence[Rule]) -> Rule | None:
    """Return the rule whose form is nearest to a name, if one is near."""
    n_numbers = len(_numbers_in(name))
    shares = [_share(name, rule) for rule in rules]
    scores = [
        share + SAME_COUNT * (len(rule.numbers) == n_numbers > 0) if share >= NEAR else 0
        for share, rule in zip(shares, rules, strict=True)
    ]
    return rules[scores.index(max(scores))] if max(scores) else None


def _share(name: str, rule: Rule) -> float:
    """Return how much is common to a name and a rule's form, whatever their case and numbers."""
    form = rule.filled([""] * len(rule.numbers))
    return SequenceMatcher(None, re.sub("[0-9]+", "", name).lower(), form.lower()).ratio()


def _numbers_in(name: str) -> list[str]:
    """Return the numbers in a name, without leading zeros."""
    return [number.lstrip("0") or "0" for number in re.findall("[0-9]+", name)]


def _in_words(allowed: Sequence[int]) -> str:
    """Return increasing numbers in words: all of a few; of many the ends, and what is left out between them."""
    if len(allowed) <= 3:
        return " or ".join(", ".join(map(str, allowed)).rsplit(", ", 1))
    left_out = sorted(set(range(allowed[0], allowed[-1])).difference(allowed))
    return f"{allowed[0]} to {allowed[-1]}" + "".join(f" but {number}" for number in left_out)
