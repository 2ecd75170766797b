"""What came of each case: pass, fail, or not run with the reason."""

import time
import traceback


class NotRun(Exception):
    """The case cannot be run here; the text says why."""


def ensure(holds, why):
    """As `assert`, which `python -O` leaves out."""
    if not holds:
        raise AssertionError(why)


class Report:
    def __init__(self, machine):
        self.machine, self.rows = machine, []
        print("  ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)

    def take(self, check, case, run):
        """Runs a case. It returns its figures, and raises NotRun or anything else where it fails."""
        began = time.monotonic()
        row = {"check": check, "case": case, "status": "pass", "figures": {}, "why": ""}
        try:
            row["figures"] = run()
        except NotRun as reason:
            row.update(status="not run", why=str(reason))
        except AssertionError as reason:
            row.update(status="fail", why=str(reason))
        except Exception:  # A case that breaks is one that failed; the others still run.
            row.update(status="fail", why=traceback.format_exc(limit=-3))
        row["seconds"] = round(time.monotonic() - began, 1)
        self.rows.append(row)
        print(f"{row['status']:8} {check}: {case} ({row['seconds']} s) {said(row)}", flush=True)

    def failed(self):
        return [row for row in self.rows if row["status"] == "fail"]

    def as_dict(self):
        return {"machine": self.machine, "cases": self.rows}

    def markdown(self):
        lines = ["| check | case | result | figures, or why | s |", "|---|---|---|---|---|"]
        for row in self.rows:
            why = said(row).replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {row['check']} | {row['case']} | {row['status']} | {why} | {row['seconds']} |")
        return "\n".join(lines)

    def closing(self):
        count = {status: sum(row["status"] == status for row in self.rows) for status in ("pass", "fail", "not run")}
        return f"{count['pass']} passed, {count['fail']} failed, {count['not run']} not run"


def said(row):
    return row["why"] or ", ".join(f"{name} {shown(value)}" for name, value in row["figures"].items())


def shown(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
