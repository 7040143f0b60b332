"""Slow measurements behind docs/findings.md: commands, not tests."""
