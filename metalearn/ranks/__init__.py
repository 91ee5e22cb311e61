"""Processes that share a training: what each takes of it, and where they meet.

Axes: R ranks.
"""

from metalearn.ranks.launch import joined, launched, refused
from metalearn.ranks.processes import ProcessRanks
from metalearn.ranks.protocol import OneRank, Ranks, Share, check_enough, refuse_division

__all__ = [
    "OneRank",
    "ProcessRanks",
    "Ranks",
    "Share",
    "check_enough",
    "joined",
    "launched",
    "refuse_division",
    "refused",
]
