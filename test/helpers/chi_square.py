"""Do two samples come from the same distribution?"""

from collections import Counter
from collections.abc import Hashable, Sequence

from scipy.stats import chi2_contingency

# Categories rarer than this (in both samples together) are counted as one: the statistic needs filled cells.
MIN_COUNT = 20


def p_value(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Probability of counts at least as different as these if both samples have the same distribution."""
    counts = Counter(first), Counter(second)
    common = [value for value in counts[0] | counts[1] if counts[0][value] + counts[1][value] >= MIN_COUNT]
    table = [[count[value] for value in common] for count in counts]
    rest = [sum(count.values()) - sum(row) for count, row in zip(counts, table, strict=True)]
    if sum(rest):
        table = [[*row, r] for row, r in zip(table, rest, strict=True)]
    return float(chi2_contingency(table).pvalue) if len(table[0]) > 1 else 1.0
