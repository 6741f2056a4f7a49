"""The results of one machine in one JSON file, row by row; a row that is measured again replaces its former self."""

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perf import machine
from perf.findings import Figure, Findings, Table

FOLDER = Path(__file__).parent.resolve() / "results"


@dataclass(frozen=True)
class Row:
    """One row as it is kept: what was found or why nothing was, and under which conditions."""

    conditions: dict[str, Any]
    findings: Findings
    not_measured: str = ""


@dataclass(frozen=True)
class Results:
    """All rows of one machine, by name; `machine` is what `perf.machine.describe` gives."""

    machine: dict[str, Any]
    rows: dict[str, Row]

    @property
    def name(self) -> str:
        """The machine's name, which is that of its files."""
        return str(self.machine["name"])

    def save(self, folder: Path) -> None:
        """Write `<machine>.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_results(path: Path) -> Results:
    """The results that `Results.save` wrote."""
    document = json.loads(path.read_text())
    return Results(document["machine"], {name: _row(row) for name, row in document["rows"].items()})


def results_of_this_machine(folder: Path) -> Results:
    """What `folder` holds for the machine at hand; empty where it holds nothing."""
    here = machine.describe()
    path = folder / f"{here['name']}.json"
    return Results(here, read_results(path).rows if path.exists() else {})


def conditions(**settings: Any) -> dict[str, Any]:
    """When and with what a row is measured."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": now, "commit": machine.commit(), "versions": machine.versions(), **settings}


def _row(row: dict[str, Any]) -> Row:
    findings = row["findings"]
    figures = [Figure(**figure) for figure in findings["figures"]]
    tables = [Table(**table) for table in findings["tables"]]
    return Row(row["conditions"], Findings(figures, tables, findings["notes"]), row["not_measured"])
