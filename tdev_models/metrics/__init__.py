"""Samples in, totals, reports and comparisons out."""
