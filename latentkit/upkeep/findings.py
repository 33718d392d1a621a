"""The results of checking a latent dataset: what could be read, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from latentkit.runtime.paths import in_shell
from latentkit.store.contents import counted
from latentkit.store.dataset_json import newest_number
from latentkit.store.folder import Folder
from latentkit.store.index import ReadUnit
from latentkit.store.plan import Plan
from latentkit.upkeep.unit_checks import num_bytes_of

Part = Literal["dataset.json", "plan", "index", "unit", "foreign", "remark"]


@dataclass(frozen=True)
class Finding:
    """One problem of a dataset, or a remark.

    Args:
        part: kind of file; "foreign" belongs to no plan, a "remark" is no damage.
        file: path of the file within the dataset's folder.
        what: what is wrong.
        fix: what repairs it; "" when nothing has to be done.
    """

    part: Part
    file: str
    what: str
    fix: str

    def __str__(self) -> str:
        return "; ".join(filter(None, [f"{self.file}: {self.what}", self.fix]))


@dataclass(frozen=True)
class Report:
    """The report of a check.

    Args:
        state: "finished", or how far it is.
        findings: in the order of plans, units, index, dataset.json, and the rest.
        num_units, num_rows, num_bytes: units that were read whole, their ledger rows, and their
            size.
    """

    folder: str
    state: str
    findings: tuple[Finding, ...]
    num_units: int
    num_rows: int
    num_bytes: int

    @property
    def damage(self) -> tuple[Finding, ...]:
        """The findings that are not remarks."""
        return tuple(finding for finding in self.findings if finding.part != "remark")

    def names(self, part: Part) -> list[str]:
        """Files of one kind in which something is wrong."""
        return [finding.file for finding in self.findings if finding.part == part]

    def __str__(self) -> str:
        checked = (
            f"{counted(self.num_units, 'unit')}, {counted(self.num_rows, 'row')},"
            f" {self.num_bytes / 1e6:.1f} MB"
        )
        verdict = f"{len(self.damage)} found broken" if self.damage else "nothing broken"
        lines = [f"{self.folder}/{finding}" for finding in self.findings]
        return "\n".join([*lines, f"{self.folder}: {self.state}; {checked} read; {verdict}"])


@dataclass
class Verification:
    """The parts of a dataset that could be read, and what is wrong with the others.

    Args:
        document: dataset.json; None when it isn't there or can't be trusted.
        plans: readable plans that are in use, by number.
        units: undamaged units, by name.
        left: names of units that an unfinished run has still to make.
    """

    folder: Folder
    document: dict[str, Any] | None = None
    plans: dict[int, Plan] = field(default_factory=dict)
    units: dict[str, ReadUnit] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, part: Part, file: str, what: str, fix: str | None = None) -> None:
        """Add a finding; without `fix` it tells the user to run `--repair`."""
        self.findings.append(
            Finding(
                part,
                file,
                what,
                fix or f"`latentkit verify {in_shell(self.folder)} --repair` makes it again",
            )
        )

    def names(self, part: Part) -> list[str]:
        """Files of one kind in which something is wrong."""
        return [finding.file for finding in self.findings if finding.part == part]

    @property
    def newest(self) -> int:
        """Number of the newest plan that can be read; -1 when there is none."""
        return max(self.plans, default=-1)

    @property
    def described(self) -> int:
        """Number of the plan that dataset.json was written for; -1 when there is none."""
        return newest_number(self.document) if self.document else -1

    def chain(self, number: int) -> list[Plan] | None:
        """Return a plan and all it builds on, oldest first; None when one can't be read."""
        chain: list[Plan] = []
        for wanted in range(number, -1, -1):
            if wanted not in self.plans:
                return None
            chain.insert(0, self.plans[wanted])
            if chain[0].settings.compacts:
                break
        return chain or None

    def report(self) -> Report:
        """Summarize the check as a report."""
        state = "finished"
        if self.left:
            done = sum(name.startswith(f"{self.newest:03d}-") for name in self.units)
            state = (
                f"unfinished, {done} of {done + len(self.left)} units of plan {self.newest:03d} are"
                " done"
            )
        num_rows = sum(unit.rows.num_rows for unit in self.units.values())
        num_bytes = sum(num_bytes_of(unit.header) for unit in self.units.values())
        return Report(
            str(self.folder), state, tuple(self.findings), len(self.units), num_rows, num_bytes
        )
