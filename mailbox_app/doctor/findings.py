"""What the doctor says: a finding with its code, its sentence and its remedy; a fact that is nobody's fault."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong: `finding` says what, for whoever reads the list; `remedy` what to do about it.

    `sentence` is what is said of one case, with its ids: `{thread_id}` and the like. `fix`: what `--fix` does.
    """

    code: str
    finding: str
    sentence: str
    remedy: str
    fix: str = ""

    def found(self, **case: Any) -> "Finding":
        """This case of it."""
        ids = {name: str(value) for name, value in case.items() if name.endswith("_id") and value is not None}
        return Finding(code=self.code, sentence=self.sentence.format(**case), ids=ids, remedy=self.remedy)


@dataclass(kw_only=True)
class Finding:
    """One thing that is wrong. `is_fixed`: it was, and `--fix` has repaired it."""

    code: str
    sentence: str
    ids: dict[str, str] = field(default_factory=dict)
    remedy: str
    is_fixed: bool = False


# Of each code so many are kept and told; the others are counted.
MOST_TOLD = 20

# A remedy where a row says what no verb writes.
REPORT = (
    "Nothing in Mailbox writes this: somebody's SQL, a restored backup or an error in Mailbox did. "
    "Keep the rows, and report it with this line."
)


class Report:
    """All that was found: `findings` of each code up to a number, `counts` of them all, `facts`, rows looked at."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.facts: list[str] = []
        self.counts: Counter[str] = Counter()
        self.fixed: Counter[str] = Counter()
        self.looked_at: Counter[str] = Counter()

    def add(self, found: Iterable[Finding]) -> None:
        """Take findings, whether repaired or not."""
        for one in found:
            self.counts[one.code] += 1
            self.fixed[one.code] += one.is_fixed
            if self.counts[one.code] <= MOST_TOLD:
                self.findings.append(one)

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return self.counts.total() == self.fixed.total()

    def untold(self) -> Iterator[tuple[str, int]]:
        """Codes with more findings than were kept: how many more."""
        return ((code, count - MOST_TOLD) for code, count in self.counts.items() if count > MOST_TOLD)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "healthy": self.is_healthy,
            "findings": [
                {
                    "code": one.code,
                    "sentence": one.sentence,
                    "ids": one.ids,
                    "remedy": one.remedy,
                    "fixed": one.is_fixed,
                }
                for one in self.findings
            ],
            "counts": dict(self.counts),
            "fixed": {code: count for code, count in self.fixed.items() if count},
            "facts": self.facts,
            "looked_at": dict(self.looked_at),
        }
