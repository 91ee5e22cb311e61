"""What was reproduced of published results: rows, their runs, and the page that shows them."""

from metalearn.ledger.outcomes import Outcome, Score, outcome_of, read_outcomes
from metalearn.ledger.page import ledger_page, result_line
from metalearn.ledger.rows import ROWS, TABLES, Reported, Row, Table, chosen_rows
from metalearn.ledger.runner import Commands, Interrupted, RowRunner

__all__ = [
    "ROWS",
    "TABLES",
    "Commands",
    "Interrupted",
    "Outcome",
    "Reported",
    "Row",
    "RowRunner",
    "Score",
    "Table",
    "chosen_rows",
    "ledger_page",
    "outcome_of",
    "read_outcomes",
    "result_line",
]
