"""What was measured of a model before it is converted: files whose schema says what they are about.

``given`` finds what a conversion needs among the files it was given.
"""

from converters.evidence.given import check_needed, importance_for, needs_ranges, ranges_for

__all__ = ["check_needed", "importance_for", "needs_ranges", "ranges_for"]
